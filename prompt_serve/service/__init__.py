"""Serving tasks over one shared image encoder. Never imports torch."""
