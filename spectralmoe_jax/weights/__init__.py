"""Weights of other people: read, checked, converted and written."""
