"""Division of images into training tiles, and the label grid that finds tiles with labels."""
