"""Inference: from the images of a request to predictions."""
