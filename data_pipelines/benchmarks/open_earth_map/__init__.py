"""OpenEarthMap."""
