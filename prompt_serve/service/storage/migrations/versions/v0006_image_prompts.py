"""Which prompt files have vectors of the image tower; until now they were not served."""

import sqlalchemy as sa
from alembic import op

from prompt_serve.errors import PromptError
from prompt_serve.prompts.prompt_file import from_bytes

revision = "0006"
down_revision = "0005"

_FILES = sa.table(
    "prompt_file",
    sa.column("version", sa.String),
    sa.column("data", sa.LargeBinary),
    sa.column("prompts_images", sa.Boolean),
)
_FEATURES = sa.table("class_features", sa.column("version", sa.String))


def upgrade() -> None:  # noqa: D103 (the module says it)
    op.add_column(
        "prompt_file",
        sa.Column("prompts_images", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("ix_prompt_file_prompts_images", "prompt_file", ["prompts_images"])
    connection = op.get_bind()
    # Files that were served have stored features; an import may have brought others.
    served = sa.exists().where(_FEATURES.c.version == _FILES.c.version)
    unserved = sa.select(_FILES.c.version, _FILES.c.data).where(~served)
    versions = [row.version for row in connection.execute(unserved) if _prompts_images(row.data)]
    for version in versions:
        this = _FILES.c.version == version
        connection.execute(_FILES.update().where(this).values(prompts_images=True))


def _prompts_images(data: bytes) -> bool:
    try:
        return from_bytes(data).image is not None
    except PromptError:
        return False
