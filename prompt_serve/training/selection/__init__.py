"""Choice of a method under a budget of bytes, and the frontier of bytes against accuracy."""
