"""Versions that each name can be rolled back to, so that no change reads the whole history."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:  # noqa: D103 (the module says it)
    op.create_table(
        "kept_version",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column(
            "version",
            sa.String(64),
            sa.ForeignKey("prompt_file.version"),
            primary_key=True,
            index=True,
        ),
        sa.Column("change_id", _COUNTER, nullable=False),
    )
    op.execute(
        "INSERT INTO kept_version (name, version, change_id) "
        "SELECT change.name, change.version, max(change.id) FROM change "
        "JOIN prompt_file ON prompt_file.version = change.version "
        "GROUP BY change.name, change.version"
    )
