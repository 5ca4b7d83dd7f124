"""A PostgreSQL server that denies what the service needs is an outage, and no fault of its code."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from tests.golden import GOLDEN
from tests.service.databases import new_database
from tests.service.storage.test_registry import new, put


@pytest.fixture
def url(postgres: str) -> str:
    return new_database(postgres)


@pytest.fixture
def operator(url: str) -> Iterator[Callable[..., None]]:
    """Run statements of the superuser: those about tables in the database, others beside it."""
    own = sa.make_url(url).set(drivername="postgresql+psycopg")
    engines = {
        kind: sa.create_engine(found, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        for kind, found in (("inside", own), ("beside", own.set(database="postgres")))
    }

    def run(*statements: str) -> None:
        for statement in statements:
            kind = "beside" if statement.startswith(BESIDE) else "inside"
            with engines[kind].connect() as connection:
                connection.exec_driver_sql(statement.format(name=own.database))

    yield run
    for engine in engines.values():
        engine.dispose()


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    database = Database(url)
    registry = Registry(database)
    put(registry, "pets", GOLDEN["zero_shot"])
    yield registry
    database.close()


BESIDE = ("ALTER DATABASE", "CREATE ROLE", "DROP ROLE", "SELECT pg_terminate_backend(pid)")
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
DENIALS: dict[str, tuple[list[str], list[str]]] = {
    "no rights": (
        ["CREATE ROLE weak", "ALTER DATABASE {name} SET role = weak", CUT],
        ["ALTER DATABASE {name} RESET role", CUT, "DROP ROLE weak"],
    ),
    "no connections": (
        ["ALTER DATABASE {name} ALLOW_CONNECTIONS false", CUT],
        ["ALTER DATABASE {name} ALLOW_CONNECTIONS true"],
    ),
    "another schema": (
        ["ALTER DATABASE {name} SET search_path = nowhere", CUT],
        ["ALTER DATABASE {name} RESET search_path", CUT],
    ),
    "a renamed table": (
        ["ALTER TABLE task RENAME TO gone"],
        ["ALTER TABLE gone RENAME TO task"],
    ),
    "a renamed column": (
        ["ALTER TABLE task RENAME COLUMN version TO gone"],
        ["ALTER TABLE task RENAME COLUMN gone TO version"],
    ),
}


@pytest.mark.parametrize("kind", DENIALS)
def test_what_the_server_denies_is_an_outage_until_it_allows_it(
    registry: Registry, operator: Callable[..., None], kind: str
) -> None:
    deny, allow = DENIALS[kind]
    uses: list[Callable[[], object]] = [
        lambda: registry.task("pets"),
        lambda: registry.versions(["pets"]),
        lambda: put(registry, "cars", GOLDEN["deep"]),
        lambda: registry.delete("pets"),
    ]
    operator(*deny)
    try:
        for use in uses:
            with pytest.raises(NotReady, match=r"The registry cannot be .* Nothing was changed"):
                use()
    finally:
        operator(*allow)

    assert registry.count() == 1
    put(registry, "cars", GOLDEN["deep"])


SLOW_COMMIT = (
    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON audit DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION wait()",
)


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_connection_lost_in_a_commit_leaves_it_unknown_whether_it_was_made(
    registry: Registry, url: str, operator: Callable[..., None], end: str, change: str
) -> None:
    """The server may have committed, and not have been able to say so."""
    operator(*SLOW_COMMIT)
    messages: list[str] = []

    def work() -> None:
        try:
            if change == "put":
                registry.put(new("cars", GOLDEN["deep"]))
            else:
                registry.delete("pets")
        except NotReady as error:
            messages.append(error.message)

    thread = threading.Thread(target=work)
    thread.start()
    give_up = time.monotonic() + 60
    query = f"SELECT {end}(pid) FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'"
    beside = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    with beside.connect() as connection:
        while not connection.exec_driver_sql(query).fetchall():
            assert time.monotonic() < give_up
            connection.rollback()  # each transaction sees one state of the activity
            time.sleep(0.02)
    beside.dispose()
    thread.join()
    operator("DROP TRIGGER slow ON audit")

    unknown = "Whether the change was made is unknown."
    expected = unknown if end == "pg_terminate_backend" else "Nothing was changed."
    assert len(messages) == 1
    assert expected in messages[0]
    assert registry.count() == 1
