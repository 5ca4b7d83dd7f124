"""API keys: ``ps_<id>_<secret>``, shown once; the database holds the id and a hash.

The secret is 256 random bits, stored as its plain SHA-256. Slow, salted hashes (bcrypt, argon2)
protect secrets that people choose, because those can be guessed. 256 random bits cannot be guessed
at any speed, and two keys never share a secret. A slow hash would only let a caller with wrong keys
keep the cores busy. The id is not secret: it finds the row, and identifies the key in logs.

Rows are never removed: a revoked key stays in the list, and a service that once had a key never
becomes open to anonymous callers.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from prompt_serve.errors import RequestInvalid
from prompt_serve.service.permissions import NO_LIMITS, ROLES, Permissions, Quota, Role
from prompt_serve.service.storage import audit
from prompt_serve.service.storage.database import Database, metadata

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

PREFIX = "ps"
_SECRET_BYTES = 32
_ID_BYTES = 6
_TOKEN = re.compile(rf"{PREFIX}_([0-9a-f]{{{2 * _ID_BYTES}}})_([A-Za-z0-9_-]{{43}})")
# Compared with if there is no such key, so that response times do not reveal which ids exist.
_DUMMY_DIGEST = hashlib.sha256(b"").hexdigest()

key_table = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("expires", sa.String(40)),
    sa.Column("revoked", sa.String(40)),
    sa.Column("last_used", sa.String(40)),
    # Lists with spaces between; without actions, those of the role.
    sa.Column("actions", sa.Text, nullable=False, server_default=""),
    sa.Column("names", sa.Text, nullable=False, server_default=""),
    sa.Column("tags", sa.Text, nullable=False, server_default=""),
    sa.Column("quota", sa.Text, nullable=False, server_default=""),  # JSON
    sa.Column("requests", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("images", sa.BigInteger, nullable=False, server_default="0"),
)


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """Stored key; times are ISO 8601 in UTC."""

    id: str
    name: str
    digest: str  # SHA-256 of the secret, in hexadecimal digits
    created: str
    expires: str | None
    revoked: str | None
    last_used: str | None  # accurate to about a minute
    permissions: Permissions
    quota: Quota = NO_LIMITS
    requests: int = 0  # answered so far, accurate to about a minute
    images: int = 0

    @property
    def role(self) -> Role:
        """Return the shorthand for the actions of the key."""
        return self.permissions.role

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        """Return the state of the key at a time."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and datetime.fromisoformat(self.expires) <= now:
            return "expired"
        return "valid"


@dataclass(frozen=True)
class Token:
    """Key as sent by a caller, split into its parts."""

    id: str
    secret: str

    @classmethod
    def parse(cls, text: str) -> "Token | None":
        """Split ``ps_<id>_<secret>``; return None if ``text`` does not have this form."""
        match = _TOKEN.fullmatch(text)
        return None if match is None else cls(*match.groups())

    def opens(self, key: StoredKey | None) -> bool:
        """Return True if this is the token of ``key``; all wrong ones take the same time."""
        digest = _DUMMY_DIGEST if key is None else key.digest
        return hmac.compare_digest(_digest(self.secret), digest) and key is not None


class Keys:
    """Keys in a database. Its methods block."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        permissions: Role | Permissions,
        expires: datetime | None = None,
        quota: Quota = NO_LIMITS,
    ) -> tuple[str, StoredKey]:
        """Create a key and return its token, which is not stored, and the stored key.

        Raises:
            RequestInvalid: the name is invalid or in use by a valid key, or the expiry is past.
        """
        now = datetime.now(UTC)
        _check(name, expires, now)
        if isinstance(permissions, str):
            permissions = Permissions(ROLES[permissions])
        token, key = _new_key(name, permissions, expires, quota, now)
        with self._database.write() as db:
            named = db.execute(sa.select(key_table).where(key_table.c.name == name))
            if any(_key(row).state(now) == "valid" for row in named):
                raise RequestInvalid(
                    f"There is a valid key named {name!r}. Revoke it first, or use another name."
                )
            db.execute(key_table.insert(), _row(key))
            audit.record(db, "key.create", name, after=key.id)
        return token, key

    def rotate(
        self, name: str, overlap: timedelta, expires: datetime | None = None
    ) -> tuple[str, StoredKey]:
        """Create a key with the name, permissions and quota of a valid one, which expires soon.

        Args:
            name: of the valid key.
            overlap: time for which both are valid.
            expires: of the new key.

        Returns:
            The token of the new key, and the stored key.

        Raises:
            RequestInvalid: there is no valid key of that name, or the expiry is past.
        """
        now = datetime.now(UTC)
        _check(name, expires, now)
        ends = _iso(now + overlap)
        with self._database.write() as db:
            query = sa.select(key_table).where(key_table.c.name == name)
            query = query.order_by(key_table.c.created, key_table.c.id)
            valid = [k for row in db.execute(query) if (k := _key(row)).state(now) == "valid"]
            if not valid:
                raise RequestInvalid(
                    f"There is no valid key named {name[:100]!r}. Create one: "
                    f"prompt-serve keys create {name[:100]}"
                )
            token, key = _new_key(name, valid[-1].permissions, expires, valid[-1].quota, now)
            for old in valid:
                if old.expires is None or old.expires > ends:
                    this = key_table.c.id == old.id
                    db.execute(key_table.update().where(this).values(expires=ends))
            db.execute(key_table.insert(), _row(key))
            audit.record(db, "key.rotate", name, before=valid[-1].id, after=key.id)
        return token, key

    def all(self) -> list[StoredKey]:
        """Return all keys, including revoked ones, in the order of their creation."""
        query = sa.select(key_table).order_by(key_table.c.created, key_table.c.id)
        return self._database.read(lambda db: [_key(row) for row in db.execute(query)])

    def find(self, key_id: str) -> StoredKey | None:
        """Return the key of an id; None if there is none."""
        query = sa.select(key_table).where(key_table.c.id == key_id)
        row = self._database.read(lambda db: db.execute(query).one_or_none())
        return None if row is None else _key(row)

    def exist(self) -> bool:
        """Return True if any key was ever created."""
        query = sa.select(key_table.c.id).limit(1)
        return self._database.read(lambda db: db.execute(query).first() is not None)

    def revoke(self, name_or_id: str) -> list[StoredKey]:
        """Revoke the keys of a name, or the key of an id, and return them.

        Raises:
            RequestInvalid: there is no such key, or it is revoked already.
        """
        matches = (key_table.c.name == name_or_id) | (key_table.c.id == name_or_id)
        now = _iso(datetime.now(UTC))
        with self._database.write() as db:
            query = sa.select(key_table).where(matches, key_table.c.revoked.is_(None))
            keys = [replace(_key(row), revoked=now) for row in db.execute(query)]
            for key in keys:
                db.execute(key_table.update().where(key_table.c.id == key.id).values(revoked=now))
                audit.record(db, "key.revoke", key.name, before=key.id)
        if not keys:
            raise RequestInvalid(
                f"There is no key {name_or_id[:100]!r} that could be revoked. "
                f"List all keys with: prompt-serve keys list"
            )
        return keys

    def note_use(self, key_id: str, requests: int = 0, images: int = 0) -> None:
        """Record that a key was used now, without a new revision: other processes ignore it.

        Args:
            key_id: of the key.
            requests: number of requests since the last call.
            images: number of their images.
        """
        values = {
            "last_used": _iso(datetime.now(UTC)),
            "requests": key_table.c.requests + requests,
            "images": key_table.c.images + images,
        }
        with self._database.write(raise_revision=False) as db:
            db.execute(key_table.update().where(key_table.c.id == key_id).values(values))


def _check(name: str, expires: datetime | None, now: datetime) -> None:
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise RequestInvalid(
            f"{name[:200]!r} cannot be the name of a key. Use 1 to 100 letters, digits, dots, "
            f"underscores and hyphens, beginning with a letter or digit."
        )
    if expires is not None and expires <= now:
        raise RequestInvalid(f"The key would expire at {_shown(expires)}, which is in the past.")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_key(
    name: str, permissions: Permissions, expires: datetime | None, quota: Quota, now: datetime
) -> tuple[str, StoredKey]:
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = StoredKey(
        id=secrets.token_hex(_ID_BYTES),
        name=name,
        digest=_digest(secret),
        created=_iso(now),
        expires=None if expires is None else _iso(expires),
        revoked=None,
        last_used=None,
        permissions=permissions,
        quota=quota,
    )
    return f"{PREFIX}_{key.id}_{secret}", key


def _key(row: sa.Row[Any]) -> StoredKey:
    fields = dict(row._mapping)
    role, actions = fields.pop("role"), fields.pop("actions").split()
    names, tags = fields.pop("names").split(), fields.pop("tags").split()
    permissions = Permissions.checked(actions or ROLES[role], names, tags)
    quota = Quota(**json.loads(fields.pop("quota") or "{}"))
    return StoredKey(**fields, permissions=permissions, quota=quota)


def _row(key: StoredKey) -> Mapping[str, object]:
    fields = dict(vars(key))
    permissions: Permissions = fields.pop("permissions")
    limits = {name: limit for name, limit in asdict(key.quota).items() if limit is not None}
    return {
        **fields,
        "role": permissions.role,
        "actions": " ".join(sorted(permissions.actions)),
        "names": " ".join(permissions.names),
        "tags": " ".join(permissions.tags),
        "quota": json.dumps(limits) if limits else "",
    }


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _shown(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
