"""Drills: faults under a running service, every answer checked, and what they cost."""
