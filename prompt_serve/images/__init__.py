"""Images as callers give them, and their conversion to RGB."""
