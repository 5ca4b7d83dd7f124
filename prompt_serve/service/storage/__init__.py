"""The database: tables, migrations, registry, keys and the audit log."""
