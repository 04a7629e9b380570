"""The feedback edge: the student's advantage says how good the guidance was (Gu 2024)."""
