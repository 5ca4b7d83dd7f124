"""Servers of the peers; each runs in its own environment, and imports nothing of the project."""
