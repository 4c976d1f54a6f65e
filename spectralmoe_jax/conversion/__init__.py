"""Conversion: published weights to ours, trained runs to PyTorch."""
