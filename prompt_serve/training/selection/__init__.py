"""Choosing what to train: a method under a budget of bytes, and the frontier of bytes and accuracy."""
