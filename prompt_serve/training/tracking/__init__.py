"""Experiment trackers: where a training run is logged, beside its prompt file.

A tracker's package is imported when a run is begun with it, never before.
"""
