"""Five-Billion-Pixels, cross-sensor."""
