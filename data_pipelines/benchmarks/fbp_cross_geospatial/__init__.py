"""Five-Billion-Pixels, cross-geospatial."""
