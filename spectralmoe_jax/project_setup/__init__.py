"""`spectralmoe init`: from a folder of images to a configuration."""
