"""Commands that call a running service or open its database."""
