"""Database of the service: tables, migrations, registry, API keys and the audit log."""
