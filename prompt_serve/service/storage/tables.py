"""Tables of the registry, and dataclasses for their rows.

prompt_file     version (sha256) -> the file's bytes and the columns of listings; never changes
task            name -> current version, previous version, pinned or not
task_tag        tags of a name
change          history: version of each name, time, author; rows are added, and removed by age
kept_version    versions that each name can be rolled back to: the last ``keep_versions``
class_features  (version, backbone fingerprint) -> float32; a cache, so a restart encodes nothing
"""

from dataclasses import dataclass

import sqlalchemy as sa

from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.service.storage.database import metadata

# Names sort by their bytes, whatever the locale of a PostgreSQL server.
NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
# SQLite auto-increments only columns of its own type INTEGER.
COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

prompt_file = sa.Table(
    "prompt_file",
    metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("backbone", sa.String(500), nullable=False),
    sa.Column("n_classes", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False, server_default=""),
    sa.Column("words", sa.Text, nullable=False, server_default=""),
    sa.Column("prompts_images", sa.Boolean, nullable=False, server_default=sa.false(), index=True),
    sa.Column("facts", sa.Text, nullable=False, server_default=""),  # JSON; "": unreadable file
)
task = sa.Table(
    "task",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("version", sa.ForeignKey("prompt_file.version"), nullable=False, index=True),
    sa.Column("updated", sa.String(40), nullable=False),
    sa.Column("previous", sa.String(64), index=True),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
)
task_tag = sa.Table(
    "task_tag",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("tag", NAME, primary_key=True, index=True),
)
change = sa.Table(
    "change",
    metadata,
    sa.Column("id", COUNTER, primary_key=True),
    sa.Column("name", NAME, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("what", sa.String(20), nullable=False),
    sa.Column("version", sa.String(64), index=True),
    sa.Column("previous", sa.String(64)),
    sa.Index("ix_change_name_id", "name", "id"),
)
kept_version = sa.Table(
    "kept_version",
    metadata,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("version", sa.ForeignKey("prompt_file.version"), primary_key=True, index=True),
    sa.Column("change_id", COUNTER, nullable=False),  # the last change that pointed the name there
)
class_features = sa.Table(
    "class_features",
    metadata,
    sa.Column("version", sa.ForeignKey("prompt_file.version"), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("features", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class StoredTask:
    """Task as it appears in listings."""

    name: str
    version: str
    updated: str  # ISO 8601, UTC
    method: str
    backbone: str
    n_classes: int
    size_bytes: int
    fingerprint: str  # of the backbone it was learned on
    pinned: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredPrompt:
    """Prompt file of a version, and its class features for one backbone if they are stored."""

    data: bytes
    features: bytes | None  # little-endian float32 (C, E)


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """Columns of a version, and the facts about it (see ``prompt_facts``)."""

    method: str
    backbone: str
    fingerprint: str
    n_classes: int
    size_bytes: int
    facts: str  # JSON


@dataclass(frozen=True, kw_only=True)
class StoredChange:
    """Entry of a name's history."""

    id: int
    at: str  # ISO 8601, UTC
    who: str
    what: str  # put, alias, rollback, delete, import
    version: str | None  # after the change; None: deleted
    previous: str | None
    kept: bool  # the file of ``version`` still exists, so a rollback is possible


def search_text(prompt: Prompt) -> str:
    """Return the text that a search matches beside the task name: method and class names."""
    return without_nul("\n".join([prompt.method, *prompt.class_names]).casefold())


def without_nul(text: str) -> str:
    """Return a text with spaces in place of NUL, which PostgreSQL cannot store."""
    return text.replace("\0", " ")
