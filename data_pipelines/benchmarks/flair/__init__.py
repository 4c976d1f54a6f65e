"""FLAIR #1."""
