"""Frozen CLIP: load it and run its towers with learned vectors."""
