"""Compiling the real steps for a machine that is not here, and saying what they would take there."""
