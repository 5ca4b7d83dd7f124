"""Metrics, logs, traces and the request log."""
