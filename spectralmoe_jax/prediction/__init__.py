"""Prediction: sliding windows over images of any size, georeferenced maps, pictures."""
