"""Levels of one room as arrays: many copies drawn, stepped and seen at once."""
