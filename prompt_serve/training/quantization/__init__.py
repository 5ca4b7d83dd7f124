"""Codebooks for learned parameters, and the one-dimensional k-means that makes them."""
