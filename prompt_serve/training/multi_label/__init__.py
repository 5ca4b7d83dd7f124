"""Multi-label tasks: an image has several of the labels, one, or none. No torch."""
