"""Damaged and hostile inputs of every reader, made by seed."""
