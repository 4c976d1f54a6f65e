"""WHU-OHS."""
