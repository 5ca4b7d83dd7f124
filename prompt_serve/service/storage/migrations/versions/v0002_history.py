"""History, tags, pinning, and words to search; what is there counts as put when it was updated."""

import sqlalchemy as sa
from alembic import op

from prompt_serve.errors import PromptError
from prompt_serve.prompts.prompt_file import from_bytes

revision = "0002"
down_revision = "0001"

_NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:  # noqa: D103 (the module says it)
    op.add_column(
        "prompt_file", sa.Column("fingerprint", sa.String(64), nullable=False, server_default="")
    )
    op.add_column("prompt_file", sa.Column("words", sa.Text, nullable=False, server_default=""))
    op.add_column("task", sa.Column("previous", sa.String(64)))
    op.create_index("ix_task_previous", "task", ["previous"])
    op.add_column(
        "task", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false())
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("task", "name", type_=sa.String(128, collation="C"))
    op.create_table(
        "task_tag",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("tag", _NAME, primary_key=True, index=True),
    )
    op.create_table(
        "change",
        sa.Column("id", _COUNTER, primary_key=True),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("what", sa.String(20), nullable=False),
        sa.Column("version", sa.String(64), index=True),
        sa.Column("previous", sa.String(64)),
        sa.Index("ix_change_name_id", "name", "id"),
    )
    _describe_files()
    op.execute(
        "INSERT INTO change (name, at, who, what, version) "
        "SELECT name, updated, '', 'put', version FROM task ORDER BY updated"
    )


def _describe_files() -> None:
    files = sa.table("prompt_file", *map(sa.column, ("version", "data", "fingerprint", "words")))
    db = op.get_bind()
    for version in db.execute(sa.select(files.c.version)).scalars().all():
        this = files.c.version == version
        data = db.execute(sa.select(files.c.data).where(this)).scalar_one()
        try:
            prompt = from_bytes(bytes(data))
        except PromptError:
            continue  # unreadable since it was stored; asking for it will say so
        words = "\n".join([prompt.method, *prompt.class_names]).casefold().replace("\0", " ")
        described = {"fingerprint": prompt.backbone.fingerprint, "words": words}
        db.execute(files.update().where(this).values(**described))
