"""One run: built from its configuration, written to its folder, resumed from it."""
