"""A PostgreSQL server that hangs holds nobody longer than the deadline of the request."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.storage.database import Database
from tests.service.databases import frozen, new_database, postgres_programs, temporary_server
from tests.service.process import Served, service
from tests.service.prompts import picture

# Before, a frozen server held a request of 1 s for 25 s. Each step may take a busy machine seconds.
LONGEST_S = 15.0


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[str]:
    """Folder of a server of this module's own: other tests must not find theirs frozen."""
    programs = postgres_programs()
    assert programs is not None
    with temporary_server(programs) as running:
        yield running


def _write(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.text("SELECT 1"))


def _freeze_inside_a_transaction(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.text("SELECT pg_sleep(60)"))


@pytest.mark.parametrize("timeout_s", [0.2, 1.0])
@pytest.mark.parametrize(
    "use", [Database.revision, _write, lambda database: database.read(lambda c: None)]
)
def test_a_frozen_server_is_an_outage_at_the_deadline(
    server: str, timeout_s: float, use: Callable[[Database], object]
) -> None:
    database = Database(new_database(server))
    context = RequestContext(deadline=Deadline.after(timeout_s))
    with frozen(server), request_scope(context):
        started = time.monotonic()
        with pytest.raises(NotReady, match=r"did not answer|timeout expired"):
            use(database)
        elapsed_s = time.monotonic() - started
    use(database)  # as soon as it answers again
    database.close()

    assert elapsed_s < LONGEST_S


def test_a_statement_that_takes_longer_than_the_request_is_ended(server: str) -> None:
    database = Database(new_database(server))
    before = database.revision()
    started = time.monotonic()
    with (
        request_scope(RequestContext(deadline=Deadline.after(0.5))),
        pytest.raises(NotReady, match="Nothing was changed"),
    ):
        _freeze_inside_a_transaction(database)

    assert time.monotonic() - started < LONGEST_S
    assert database.revision() == before
    database.close()


@pytest.fixture(scope="module")
def on_postgresql(
    server: str, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("frozen")
    with service(home, tiny_bundle, database_url=new_database(server)) as running:
        task = {"name": "pets", "class_names": ["cat", "dog"]}
        assert httpx.post(f"{running.url}/v1/tasks", json=task, timeout=60).status_code == 201
        yield running


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/classify?task=pets", {"content": picture()}),
        ("GET", "/v1/tasks", {}),
        ("GET", "/v1/tasks/pets/history", {}),
        ("GET", "/v1/info", {}),
        ("POST", "/v1/tasks", {"json": {"name": "new", "class_names": ["a", "b"]}}),
        ("PUT", "/v1/tasks/pets/tags", {"json": {"tags": ["x"]}}),
        ("DELETE", "/v1/tasks/nothing", {}),
    ],
)
def test_a_request_ends_at_its_deadline(
    server: str, on_postgresql: Served, method: str, path: str, body: dict[str, object]
) -> None:
    headers = {"x-request-timeout-ms": "500"}
    if "content" in body:
        headers["content-type"] = "image/png"
    with httpx.Client(base_url=on_postgresql.url, headers=headers, timeout=60) as client:
        with frozen(server):
            started = time.monotonic()
            late = client.request(method, path, **body)  # type: ignore[arg-type]
            elapsed_s = time.monotonic() - started
        client.headers.pop("x-request-timeout-ms")
        after = client.request(method, path, **body)  # type: ignore[arg-type]

    assert late.status_code in (503, 504), late.text
    assert elapsed_s < LONGEST_S
    assert after.status_code < 500, after.text
