"""Commands that run the papers' protocols and build their datasets."""
