"""Trained models at work: sliding windows, whole scenes, maps and pictures."""
