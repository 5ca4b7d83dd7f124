"""Attacks on a running service: every instance is generated from a seed."""
