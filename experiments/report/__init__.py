"""From run folders to numbers, figures and pages."""
