"""Mask2Former: pixel decoder, transformer decoder, matching and loss."""
