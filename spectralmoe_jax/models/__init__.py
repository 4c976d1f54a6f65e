"""Segmenter, backbone and encoders."""
