"""Prompt files by content, names that point at them, the revision, and class features."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:  # noqa: D103 (the module says it)
    op.create_table(
        "prompt_file",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("method", sa.String(100), nullable=False),
        sa.Column("backbone", sa.String(500), nullable=False),
        sa.Column("n_classes", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
    )
    op.create_table(
        "task",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column(
            "version",
            sa.String(64),
            sa.ForeignKey("prompt_file.version"),
            nullable=False,
            index=True,
        ),
        sa.Column("updated", sa.String(40), nullable=False),
    )
    counter = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "value": 0}])
    op.create_table(
        "class_features",
        sa.Column("version", sa.String(64), sa.ForeignKey("prompt_file.version"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("features", sa.LargeBinary, nullable=False),
    )
