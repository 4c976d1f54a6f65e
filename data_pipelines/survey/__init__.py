"""What a folder of images and labels holds: files, domains, bands, labels and statistics."""
