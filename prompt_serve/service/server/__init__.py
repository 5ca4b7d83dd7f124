"""Server under the ASGI app: HTTP as RFC 9112 wants it, workers and their supervisor."""
