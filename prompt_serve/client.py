"""Ask a running service from Python."""
