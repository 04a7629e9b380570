"""Exact scores of candidates, by model family."""
