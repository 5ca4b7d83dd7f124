"""Engines: what runs the encoders of a bundle, for the service and without one; no torch."""
