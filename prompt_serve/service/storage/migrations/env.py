"""Run the migrations on the connection that ``storage.migrate`` passes to Alembic."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,  # on SQLite too: the driver's own BEGIN is off (see ``database``)
)
context.run_migrations()
