"""Run by Alembic: the migrations, on the connection that ``storage.migrate`` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,  # SQLite's too: the driver's own BEGIN is off (see ``database``)
)
context.run_migrations()
