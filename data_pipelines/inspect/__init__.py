"""`spectralmoe data`: what a configuration's pipeline delivers, in numbers and as a picture."""
