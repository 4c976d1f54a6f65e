"""Readers of labelled images: files as they are, and prepared tiles."""
