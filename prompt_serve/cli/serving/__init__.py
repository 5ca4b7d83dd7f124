"""Commands that talk to a running service or to its database."""
