"""Scores, in NumPy."""
