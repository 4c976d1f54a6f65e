"""Tiles of images of any size, and how they are drawn for training."""
