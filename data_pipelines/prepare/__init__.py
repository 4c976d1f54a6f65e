"""From downloaded files to tiles that are ready to train on: `spectralmoe prepare`."""
