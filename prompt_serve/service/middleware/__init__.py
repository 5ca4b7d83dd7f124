"""ASGI middleware: authentication, limits, CORS, cancellation."""
