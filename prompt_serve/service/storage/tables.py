"""The tables of the registry, and the rows that reading them gives.

prompt_file     version (sha256) -> the file's bytes and what listings show; never changes
task            name -> version, the version before, and whether it stays in memory
task_tag        labels of a name, to find tasks by
change          what each name pointed at, since when, and who said so; only ever grows
kept_version    what each name has pointed at and can go back to: the last ``keep_versions``
class_features  (version, backbone fingerprint) -> float32; a cache: a restart encodes nothing
"""

from dataclasses import dataclass

import sqlalchemy as sa

from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.service.storage.database import metadata

# Names sort by their bytes everywhere, whatever the language of a PostgreSQL server is.
NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
# SQLite counts up only a column of its own type INTEGER.
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
    sa.Column("change_id", COUNTER, nullable=False),  # the last one that pointed there
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
    """A task as listed."""

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
    """The file of a version, and its class features for one backbone if they are known."""

    data: bytes
    features: bytes | None  # little-endian float32 (C, E)


@dataclass(frozen=True, kw_only=True)
class StoredChange:
    """One entry of a name's history."""

    id: int
    at: str  # ISO 8601, UTC
    who: str
    what: str  # put, alias, rollback, delete, import
    version: str | None  # from then on; None: deleted
    previous: str | None
    kept: bool  # the file of ``version`` is still there, so it can be served


def words_of(prompt: Prompt) -> str:
    """What a search looks through beside names of tasks."""
    words = "\n".join([prompt.method, *prompt.class_names]).casefold()
    return words.replace("\0", " ")  # PostgreSQL's texts cannot hold it
