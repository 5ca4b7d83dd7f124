"""HTTP routes under /v1 and the forms of their bodies."""
