"""What Alembic runs: the steps on the connection that ``migrating`` hands over."""

from alembic import context

from prompt_serve.service.storage.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite's too: the driver's own BEGIN is off (see ``database``)
)
context.run_migrations()
