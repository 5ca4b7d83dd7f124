"""What keys may do and to which tasks, their quotas and their use."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:  # noqa: D103 (the module says it)
    for name in ("actions", "names", "tags", "quota"):
        # Without actions, a key has those of its role.
        op.add_column("api_key", sa.Column(name, sa.Text, nullable=False, server_default=""))
    for name in ("requests", "images"):
        op.add_column("api_key", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
