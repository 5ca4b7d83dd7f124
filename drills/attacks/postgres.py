"""Faults of a PostgreSQL server while tasks are uploaded, read and classified with.

Connections are cut, statements are cancelled, tables are locked, renamed or denied, settings of the
database are changed, the server is restarted or suspended. Every change that was acknowledged must
be there, and no answer may be wrong or an error other than a refusal.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from drills.attacks.apart import add_ledger, apart, first_change, small_oracle
from drills.attacks.kind import Kind, Target
from drills.load import Load
from drills.stand import Postgres

_PER_ROUND = 60  # answers, about
_READ_AGAIN = {"feature_cache_bytes": "20000"}
_WEAK = "drill_weak"  # role without any right
_TABLES = ("task", "prompt_file", "change", "kept_version", "revision", "task_tag", "audit")


@dataclass(frozen=True)
class Server:
    """Server under attack: its process, and connections of its superuser."""

    postgres: Postgres
    name: str  # of the database
    operator: sa.Engine  # in another database; each statement commits
    owner: sa.Engine  # in the database

    @classmethod
    def of(cls, postgres: Postgres) -> "Server":
        url = make_url(postgres.url).set(drivername="postgresql+psycopg")
        name = str(url.database)
        operator = sa.create_engine(
            url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        return cls(postgres, name, operator, sa.create_engine(url, poolclass=sa.NullPool))

    def run(self, *statements: str) -> None:
        """Run statements of the superuser, outside of the database."""
        with self.operator.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def cut(self, share: float = 1.0, function: str = "pg_terminate_backend") -> None:
        """End a share of the connections of the service, or cancel what they run."""
        with self.operator.connect() as connection:
            self._cut(connection, share, function)

    def _cut(self, connection: Connection, share: float, function: str) -> None:
        query = sa.text(
            f"SELECT {function}(pid) FROM pg_stat_activity "
            "WHERE datname = :name AND random() < :share"
        )
        connection.execute(query, {"name": self.name, "share": share}).fetchall()

    def cut_at_random(self, draw: random.Random, function: str) -> None:
        """Do that again and again for some seconds."""
        give_up = time.monotonic() + draw.uniform(1, 4)
        with self.operator.connect() as connection:
            while time.monotonic() < give_up:
                self._cut(connection, draw.random(), function)
                time.sleep(draw.choice((0.0, 0.005, 0.05)))


Fault = Callable[[Server, random.Random], None]


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Do faults in rounds."""
    settings = {**_READ_AGAIN, "stale_tasks_s": draw.choice(("0", "300"))}
    await asyncio.to_thread(small_oracle)
    async with apart(target, settings, postgres=True) as own:
        assert own.stand.postgres is not None
        server = Server.of(own.stand.postgres)
        server.run(f"CREATE ROLE {_WEAK}")
        for _ in range(max(1, count // _PER_ROUND)):
            await _round(own, server, draw)


async def _round(own: Target, server: Server, draw: random.Random) -> None:
    name, fault = draw.choice(list(FAULTS.items()))
    seed = draw.randrange(2**32)
    async with Load(
        own.stand.url, small_oracle(), clients=2, bad_images=0, leaves=0, writes_per_s=6, seed=seed
    ) as load:
        await asyncio.sleep(draw.uniform(0.2, 0.8))
        await asyncio.to_thread(fault, server, draw)
        await first_change(own, load, time.monotonic())
    await load.check_names()
    counts = load.ledger.counts
    if unanswered := counts["no answer"] + counts["changes without an answer"]:
        own.fault("lost", f"{name}: {unanswered} requests without an answer")
    load.ledger.faults[:] = [f"{fault} ({name})" for fault in load.ledger.faults]
    add_ledger(own, load.ledger)


def _terminate(server: Server, draw: random.Random) -> None:
    server.cut_at_random(draw, "pg_terminate_backend")


def _cancel(server: Server, draw: random.Random) -> None:
    server.cut_at_random(draw, "pg_cancel_backend")


def _restart(server: Server, draw: random.Random) -> None:
    server.postgres.stop()
    time.sleep(draw.uniform(0, 2))
    server.postgres.start()


def _suspend(server: Server, draw: random.Random) -> None:
    server.postgres.freeze()
    time.sleep(draw.uniform(0.5, 4))
    server.postgres.thaw()


def _lock(server: Server, draw: random.Random) -> None:
    """Lock a table or the row that all writers lock, some times for longer than they wait."""
    table = draw.choice(_TABLES)
    mode = draw.choice(("ACCESS EXCLUSIVE", "SHARE", "ROW EXCLUSIVE"))
    with server.owner.begin() as connection:
        if draw.random() < 0.3:
            connection.exec_driver_sql("SELECT * FROM revision FOR UPDATE").fetchall()
        else:
            connection.exec_driver_sql(f"LOCK TABLE {table} IN {mode} MODE")
        time.sleep(draw.choice((0.5, 2.0, 7.0)))


def _rename(server: Server, draw: random.Random) -> None:
    table = draw.choice(_TABLES)
    with server.owner.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO gone")
    time.sleep(draw.uniform(0.5, 2))
    with server.owner.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE gone RENAME TO {table}")


def _close(server: Server, draw: random.Random) -> None:
    """Refuse new connections."""
    server.run(f"ALTER DATABASE {server.name} ALLOW_CONNECTIONS false")
    server.cut(draw.uniform(0.3, 1))
    time.sleep(draw.uniform(0.5, 3))
    server.run(f"ALTER DATABASE {server.name} ALLOW_CONNECTIONS true")


def _setting(name: str, *values: str) -> Fault:
    """Return the fault of a setting of the database, which connections have from their start."""

    def fault(server: Server, draw: random.Random) -> None:
        server.run(f"ALTER DATABASE {server.name} SET {name} = {draw.choice(values)}")
        server.cut()
        time.sleep(draw.uniform(0.5, 3))
        server.run(f"ALTER DATABASE {server.name} RESET {name}")
        server.cut()

    return fault


FAULTS: Mapping[str, Fault] = {
    "connections ended": _terminate,
    "statements cancelled": _cancel,
    "server restarted": _restart,
    "server suspended": _suspend,
    "table locked": _lock,
    "table renamed": _rename,
    "connections refused": _close,
    "no rights": _setting("role", _WEAK),
    "read only": _setting("default_transaction_read_only", "on"),
    "serializable": _setting("default_transaction_isolation", "'serializable'"),
    "repeatable read": _setting("default_transaction_isolation", "'repeatable read'"),
    "short statements": _setting("statement_timeout", "1", "5", "20"),
    "short locks": _setting("lock_timeout", "1"),
    "short transactions": _setting("idle_in_transaction_session_timeout", "1", "5"),
    "another schema": _setting("search_path", "nowhere"),
}

KINDS: Mapping[str, Kind] = {
    "postgres": Kind("faults of PostgreSQL during uploads", attack),
}
