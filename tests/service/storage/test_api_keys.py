"""Keys and the audit log in a real database."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady, RequestInvalid
from prompt_serve.service.middleware.api_key_cache import FRESH_S, NOTE_USE_EVERY_S, ApiKeyCache
from prompt_serve.service.permissions import Permissions, Quota
from prompt_serve.service.storage.api_keys import Keys, Token, key_table
from prompt_serve.service.storage.audit import AuditLog, acting_as, record
from prompt_serve.service.storage.database import Database
from tests.service.clock import Clock


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    yield database
    database.close()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


def test_a_key_is_shown_once_and_stored_as_a_hash_alone(keys: Keys, tmp_path: Path) -> None:
    text, key = keys.create("ci", "infer")
    token = Token.parse(text)
    assert token is not None
    assert re.fullmatch(r"ps_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)  # 43 x 6 bits: 256 and 2 over
    assert token.opens(keys.find(key.id))
    with closing(sqlite3.connect(tmp_path / "registry.db")) as raw:
        dump = "\n".join(raw.iterdump())
    assert key.digest in dump
    assert token.secret not in dump
    assert len({keys.create(f"k{i}", "infer")[0] for i in range(20)}) == 20


def test_a_token_opens_its_own_key_alone(keys: Keys) -> None:
    ours, key = keys.create("ours", "infer")
    theirs, other = keys.create("theirs", "admin")
    parsed = Token.parse(theirs)
    assert parsed is not None
    assert parsed.opens(other)
    assert not parsed.opens(key)
    assert not parsed.opens(None)
    forged = Token(other.id, ours.split("_", 2)[2])
    assert not forged.opens(other)
    for nonsense in ("", "ps_", ours[:-1], ours + "a", f"x{ours}", ours.replace("_", "-", 1)):
        assert Token.parse(nonsense) is None


def test_names_are_taken_while_their_key_is_valid(keys: Keys) -> None:
    keys.create("ci", "infer")
    with pytest.raises(RequestInvalid, match="There is a valid key named 'ci'"):
        keys.create("ci", "admin")
    assert [key.name for key in keys.revoke("ci")] == ["ci"]
    keys.create("ci", "admin")
    with pytest.raises(RequestInvalid, match="cannot be the name of a key"):
        keys.create("two words", "infer")
    with pytest.raises(RequestInvalid, match="which is in the past"):
        keys.create("old", "infer", datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(RequestInvalid, match="no key 'nobody' that could be revoked"):
        keys.revoke("nobody")


def test_states_of_keys(keys: Keys) -> None:
    _, key = keys.create("soon", "infer", datetime.now(UTC) + timedelta(hours=1))
    now = datetime.now(UTC)
    assert key.state(now) == "valid"
    assert key.state(now + timedelta(hours=2)) == "expired"
    keys.revoke(key.id)
    [stored] = keys.all()
    assert stored.state(now) == "revoked"
    assert keys.exist()  # for ever: no way back to a service that answers everybody


def test_a_worker_forgets_a_key_within_half_a_second(keys: Keys) -> None:
    clock = Clock()
    ring = ApiKeyCache(keys, clock)
    _, key = keys.create("leaving", "infer")
    assert ring.remembered(key.id) is None
    assert ring.find(key.id) == key
    assert ring.remembered(key.id) == key
    keys.revoke("leaving")
    clock.now += FRESH_S + 0.01
    assert ring.remembered(key.id) is None
    found = ring.find(key.id)
    assert found is not None
    assert found.state(datetime.now(UTC)) == "revoked"
    assert FRESH_S < 1.0


def test_no_keys_is_remembered_as_briefly_and_keys_for_ever(keys: Keys) -> None:
    clock = Clock()
    ring = ApiKeyCache(keys, clock)
    assert ring.has_keys is None
    assert ring.read_has_keys() is False
    assert ring.has_keys is False
    clock.now += FRESH_S + 0.01
    assert ring.has_keys is None
    keys.create("first", "infer")
    assert ring.read_has_keys() is True
    clock.now += 1e6
    assert ring.has_keys is True


def test_the_last_use_is_written_at_most_once_a_minute(keys: Keys, database: Database) -> None:
    clock = Clock()
    ring = ApiKeyCache(keys, clock)
    _, key = keys.create("busy", "infer")
    revision = database.revision()
    assert ring.use_is_due(key)
    assert not ring.use_is_due(key)
    ring.note_use(key)
    clock.now += NOTE_USE_EVERY_S + 1
    assert ring.use_is_due(key)
    found = keys.find(key.id)
    assert found is not None
    assert found.last_used is not None
    assert database.revision() == revision  # other workers need not look for changes


def test_what_is_rolled_back_was_not_done_by_anybody(database: Database) -> None:
    log = AuditLog(database)

    def change() -> None:
        with database.write() as db:
            record(db, "task.put", "pets", after="a" * 64)
            raise NotReady("half-way")

    with pytest.raises(NotReady, match="half-way"):
        change()
    assert log.page().entries == []


def test_changes_are_noted_with_who_made_them_and_read_in_pages(
    database: Database, keys: Keys
) -> None:
    with acting_as("cli:ann"):
        keys.create("ci", "infer")
        keys.revoke("ci")
    for number in range(5):
        with database.write() as db:
            record(db, "task.put", f"t{number}", before=None, after=f"{number}")
    log = AuditLog(database)

    newest = log.page(limit=3)
    assert [entry.subject for entry in newest.entries] == ["t4", "t3", "t2"]
    rest = log.page(limit=100, before=newest.next)
    assert [entry.action for entry in rest.entries] == [
        "task.put",
        "task.put",
        "key.revoke",
        "key.create",
    ]
    assert rest.next is None
    assert {entry.actor for entry in rest.entries} == {"anonymous", "cli:ann"}
    [put] = log.page(action="task.put", subject="t1").entries
    assert (put.before, put.after) == (None, "1")


@pytest.mark.parametrize("overlap_h", [0, 1, 24, 48, 1000])
@pytest.mark.parametrize("expires_h", [None, 2, 100])
def test_a_rotated_key_ends_after_the_overlap_or_at_its_own_expiry(
    keys: Keys, overlap_h: int, expires_h: int | None
) -> None:
    now = datetime.now(UTC)
    expires = None if expires_h is None else now + timedelta(hours=expires_h)
    permissions = Permissions.checked(["read", "upload"], ["team/*"])
    quota = Quota(requests_per_s=2.5, tasks=7)
    old_token, old = keys.create("app", permissions, expires, quota)
    token, new = keys.rotate("app", timedelta(hours=overlap_h))

    assert token != old_token
    assert (new.name, new.permissions, new.quota) == ("app", permissions, quota)
    assert new.expires is None
    found = keys.find(old.id)
    assert found is not None
    ends_h = min(overlap_h, expires_h or overlap_h)
    for hours in (0.5, 1.5, 30, 70, 2000):
        expected = "valid" if hours < ends_h else "expired"
        assert found.state(now + timedelta(hours=hours)) == expected, hours
        assert new.state(now + timedelta(hours=hours)) == "valid"
    assert {key.id for key in keys.revoke("app")} == {old.id, new.id}
    with pytest.raises(RequestInvalid, match="no valid key named 'app'"):
        keys.rotate("app", timedelta(hours=1))


@pytest.mark.parametrize(
    ("role", "actions"),
    [("infer", {"read", "classify"}), ("admin", {"read", "classify", "upload", "admin"})],
)
def test_a_key_of_before_has_the_actions_of_its_role(
    database: Database, keys: Keys, role: str, actions: set[str]
) -> None:
    token, key = keys.create("old", "infer")
    with database.write() as db:
        db.execute(sa.update(key_table).values(role=role, actions="", names="", tags="", quota=""))
    found = keys.find(key.id)
    assert found is not None
    assert str(found.role) == role
    assert set(map(str, found.permissions.actions)) == actions
    assert found.permissions.has_all_tasks
    assert found.quota == Quota()
    parsed = Token.parse(token)
    assert parsed is not None
    assert parsed.opens(found)


def test_uses_are_added_up_and_written_at_the_latest_when_a_worker_stops(keys: Keys) -> None:
    cache = ApiKeyCache(keys, Clock())
    _, key = keys.create("busy", "infer")
    for images in (0, 3, 4):
        cache.count(key.id, images)
    cache.note_use(key)
    cache.count(key.id, 5)
    cache.close()
    cache.close()
    found = keys.find(key.id)
    assert found is not None
    assert (found.requests, found.images) == (4, 12)
