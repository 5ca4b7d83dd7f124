"""Facts of the prompt files for the details of tasks; until now the files were parsed each time."""

import sqlalchemy as sa
from alembic import op

from prompt_serve.errors import PromptError
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.service.storage.prompt_facts import facts_of

revision = "0007"
down_revision = "0006"

_FILES = sa.table("prompt_file", *map(sa.column, ("version", "data", "facts")))


def upgrade() -> None:  # noqa: D103 (the module says it)
    op.add_column("prompt_file", sa.Column("facts", sa.Text, nullable=False, server_default=""))
    db = op.get_bind()
    for version in db.execute(sa.select(_FILES.c.version)).scalars().all():
        this = _FILES.c.version == version
        data = db.execute(sa.select(_FILES.c.data).where(this)).scalar_one()
        try:
            facts = facts_of(from_bytes(bytes(data)))
        except PromptError:
            continue  # unreadable since it was stored; asking for it will say so
        db.execute(_FILES.update().where(this).values(facts=facts))
