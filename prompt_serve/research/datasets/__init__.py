"""The datasets of the papers in the folders people already have them in, and one's own."""
