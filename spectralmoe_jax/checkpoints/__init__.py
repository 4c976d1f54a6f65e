"""Checkpoints: what is stored, which ones are kept, and how they are read back."""
