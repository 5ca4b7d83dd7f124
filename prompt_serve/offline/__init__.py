"""Predict and score in this process, without a service."""
