"""Outages of the database: tasks in memory are served on, for as long as the setting says."""

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from prompt_serve.errors import NotReady
from prompt_serve.schemas import STALE_HEADER
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.storage.outage import PATIENCE_S, RETRY_S, Outage
from tests.required import program_missing
from tests.service.databases import postgres_programs, postgres_server
from tests.service.process import Served, service
from tests.service.prompts import picture
from tests.service.secured_service import make_keys
from tests.service.test_faults import add_task, ask, status, wait_for


class Clock:
    """Time that passes when told so, and a database that fails when told so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.works = True
        self.reads = 0

    def __call__(self) -> float:
        return self.now

    def read(self) -> str:
        self.reads += 1
        if not self.works:
            raise NotReady("away")
        return f"read at {self.now:g}"


LIMITS = (1.5, 10.0, 60.0, 300.0, 86_400.0)


@pytest.mark.parametrize("limit_s", LIMITS)
def test_what_was_read_last_is_used_up_to_the_limit_and_no_longer(limit_s: float) -> None:
    clock = Clock()
    outage = Outage(limit_s, clock)
    last = outage.read(clock.read, lambda: None)
    clock.works = False
    for share in (0.1, 0.5, 0.9, 0.999):
        clock.now = 1000 + share * limit_s
        assert outage.read(clock.read, lambda: last) == "read at 1000"
        assert outage.tolerated
        assert outage.stale_s == pytest.approx(share * limit_s)
    clock.now = 1000 + 1.001 * limit_s
    for _ in range(3):
        with pytest.raises(NotReady, match="away"):
            outage.read(clock.read, lambda: last)
        assert not outage.tolerated
        clock.now += RETRY_S

    clock.works = True

    assert outage.read(clock.read, lambda: last) == f"read at {clock.now:g}"
    assert outage.stale_s == 0


def test_without_a_limit_every_outage_is_an_error_at_once() -> None:
    clock = Clock()
    outage = Outage(0, clock)
    outage.read(clock.read, lambda: None)
    clock.works = False
    for _ in range(3):
        with pytest.raises(NotReady):
            outage.read(clock.read, lambda: "last")
        clock.now += 1e-3
    assert clock.reads == 4


@pytest.mark.parametrize("limit_s", LIMITS)
def test_nothing_that_was_never_read_is_made_up(limit_s: float) -> None:
    clock = Clock()
    clock.works = False
    with pytest.raises(NotReady):
        Outage(limit_s, clock).read(clock.read, lambda: "last")


def test_an_outage_costs_one_read_per_second_whatever_the_load() -> None:
    clock = Clock()
    outage = Outage(300, clock)
    outage.read(clock.read, lambda: None)
    clock.works = False
    for _ in range(1000):
        outage.read(clock.read, lambda: "last")
        clock.now += 0.01

    assert clock.reads <= 2 + 10 / RETRY_S


def hanging_reads(outage: Outage, clock: Clock, number: int) -> Callable[[], None]:
    """Start reads that hang, each in a thread; returns what lets them end."""
    release = threading.Event()
    threads = []

    def hang() -> str:
        release.wait(60)
        return clock.read()

    for n in range(number):
        threads.append(threading.Thread(target=outage.read, args=(hang, lambda: "last")))
        threads[-1].start()
        while len(outage._running) <= n:
            release.wait(0.001)
        clock.now += 2 * PATIENCE_S

    def end() -> None:
        release.set()
        for thread in threads:
            thread.join()

    return end


def test_a_database_that_hangs_holds_only_those_that_were_first() -> None:
    clock = Clock()
    outage = Outage(300, clock)
    outage.read(clock.read, lambda: None)
    clock.now += 1
    end = hanging_reads(outage, clock, 2)  # the second noticed, and tries again

    assert outage.read(clock.read, lambda: "last") == "last"
    assert outage.tolerated
    end()
    assert not outage.tolerated


def test_a_single_read_that_hangs_is_no_outage() -> None:
    clock = Clock()
    outage = Outage(300, clock)
    outage.read(clock.read, lambda: None)
    clock.now += 1
    end = hanging_reads(outage, clock, 1)

    for _ in range(3):
        assert outage.read(clock.read, lambda: "last") != "last"
        assert not outage.tolerated
        clock.now += 2 * PATIENCE_S
    end()


@pytest.mark.parametrize("timeout_s", [1e-9, 1e-6, 1e-4])
def test_a_deadline_that_has_passed_is_no_outage(timeout_s: float) -> None:
    clock = Clock()
    outage = Outage(300, clock)
    outage.read(clock.read, lambda: None)
    deadline = Deadline.after(timeout_s)

    def fail() -> str:
        while deadline.left_s:
            time.sleep(timeout_s)
        raise NotReady("cut at the deadline", retry_after_s=1.0)

    with request_scope(RequestContext(deadline=deadline)), pytest.raises(NotReady):
        outage.read(fail, lambda: "last")

    assert not outage.tolerated
    assert outage.read(clock.read, lambda: "last") != "last"


def test_a_change_that_was_stored_ends_the_outage() -> None:
    clock = Clock()
    outage = Outage(300, clock)
    outage.read(clock.read, lambda: None)
    clock.works = False
    assert outage.read(clock.read, lambda: "last") == "last"
    clock.works = True

    assert outage.read(clock.read, lambda: "last") == "last"  # not tried again yet
    outage.end()
    assert outage.read(clock.read, lambda: "last") != "last"


@contextmanager
def postgresql() -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Yield the URL of a database, and functions that stop its server and start it again."""
    programs = postgres_programs()
    if programs is None:
        program_missing("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as parent, ExitStack() as running:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "server"

        def start() -> None:
            running.enter_context(postgres_server(programs, folder))

        start()
        yield f"postgresql://postgres@/postgres?host={folder}", running.close, start


def readiness(served: Served) -> dict[str, object]:
    body = httpx.get(f"{served.url}/readyz", timeout=20).json()
    assert isinstance(body, dict)
    return body


def stale_metric(served: Served) -> float:
    lines = httpx.get(f"{served.url}/metrics", timeout=20).text.splitlines()
    name = "prompt_serve_registry_stale_seconds"
    return max(float(line.split()[-1]) for line in lines if line.startswith(name))


def versions(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    return [prediction["version"] for prediction in result["predictions"]]


@pytest.mark.serve
@pytest.mark.long
def test_tasks_in_memory_outlive_a_stopped_postgresql(tiny_bundle: Path, tmp_path: Path) -> None:
    limit_s = 40
    with (
        postgresql() as (url, stop, start),
        service(tmp_path, tiny_bundle, database_url=url, stale_tasks_s=str(limit_s)) as served,
    ):
        add_task(served, "kept")
        add_task(served, "tagged")
        httpx.put(f"{served.url}/v1/tasks/tagged/tags", json={"tags": ["eu"]}).raise_for_status()
        ways = {
            "name": "task=kept",
            "two names": "task=kept&task=tagged",
            "tag": "tag=eu",
            "all": "task=*",
            "best": "task=*&top_tasks=1",
        }

        def classify(query: str) -> httpx.Response:
            body, kind = picture(), {"content-type": "image/png"}
            address = f"{served.url}/v1/classify?{query}"
            return httpx.post(address, content=body, headers=kind, timeout=60)

        before = {way: versions(classify(query)) for way, query in ways.items()}
        assert readiness(served) == {"ready": True, "writable": True, "failed": []}
        # What was asked for before the last changes is known as well.
        for name in ("later", "last"):
            add_task(served, name)
            assert versions(classify(f"task={name}"))

        stop()
        for way, query in ways.items():
            answer = classify(query)
            assert versions(answer) == before[way], way
            assert 1 <= int(answer.headers[STALE_HEADER]) <= limit_s
        refused = httpx.post(
            f"{served.url}/v1/tasks", json={"name": "no", "class_names": ["a", "b"]}, timeout=60
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
        assert classify("task=unknown").status_code == 503
        state = readiness(served)
        assert (state["ready"], state["writable"]) == (True, False)
        assert state["stale_s"]
        assert status(served, "readyz?writable=true") == 503
        wait_for("the metric", lambda: stale_metric(served) > 0)

        wait_for("the end of the limit", lambda: status(served, "readyz") == 503)
        assert classify("task=kept").status_code == 503

        start()
        wait_for("the database", lambda: status(served, "readyz?writable=true") == 200)
        add_task(served, "new")
        again = classify("task=kept")
        assert versions(again) == before["name"]
        assert STALE_HEADER not in again.headers
        wait_for("the metric", lambda: stale_metric(served) == 0)


@pytest.mark.serve
@pytest.mark.long
def test_without_the_setting_an_outage_is_503_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        postgresql() as (url, stop, start),
        service(tmp_path, tiny_bundle, database_url=url, stale_tasks_s="0") as served,
    ):
        add_task(served, "kept")
        assert ask(served, "kept").status_code == 200
        stop()
        assert ask(served, "kept").status_code == 503
        wait_for("the probe", lambda: status(served, "readyz") == 503)
        start()
        wait_for("the database", lambda: ask(served, "kept").status_code == 200)


@pytest.mark.serve
@pytest.mark.long
def test_keys_outlive_an_outage_too(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path, infer="infer", admin="admin", other="infer")
    with service(tmp_path, tiny_bundle) as served:
        body = {"name": "kept", "class_names": ["a", "b"]}

        def call(key: str, method: str, path: str, **kwargs: object) -> int:
            headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
            if "json" in kwargs:
                del headers["content-type"]
            url = f"{served.url}{path}"
            return httpx.request(method, url, headers=headers, timeout=60, **kwargs).status_code  # type: ignore[arg-type]

        classify = ("POST", "/v1/classify?task=kept")
        assert call(keys["admin"], "POST", "/v1/tasks", json=body) == 201
        assert call(keys["infer"], *classify, content=picture()) == 200
        (tmp_path / "registry.db").rename(tmp_path / "elsewhere.db")

        for _ in range(3):
            assert call(keys["infer"], *classify, content=picture()) == 200
            assert call(keys["infer"], "POST", "/v1/tasks", json=body) == 403
            assert call(keys["other"], *classify, content=picture()) == 503  # never read
            assert call("ps_" + "0" * 40, *classify, content=picture()) == 401

        (tmp_path / "elsewhere.db").rename(tmp_path / "registry.db")
        wait_for(
            "the database",
            lambda: call(keys["other"], *classify, content=picture()) == 200,
        )


@pytest.mark.serve
@pytest.mark.long
def test_a_locked_or_removed_sqlite_file_stops_changes_only(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with service(tmp_path, tiny_bundle) as served:
        path = tmp_path / "registry.db"
        add_task(served, "kept")
        assert ask(served, "kept").status_code == 200

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_for("the lock to be seen", lambda: status(served, "readyz?writable=true") == 503)
            assert readiness(served)["ready"] is True
            assert STALE_HEADER not in ask(served, "kept").headers
            other.execute("ROLLBACK")
        wait_for("the file", lambda: status(served, "readyz?writable=true") == 200)
        add_task(served, "free")

        path.rename(tmp_path / "elsewhere.db")
        for _ in range(5):
            refused = httpx.post(
                f"{served.url}/v1/tasks", json={"name": "no", "class_names": ["a", "b"]}
            )
            assert refused.status_code == 503
            assert "was deleted or moved" in refused.json()["detail"]
            answer = ask(served, "kept")
            assert answer.status_code == 200
            assert int(answer.headers[STALE_HEADER]) >= 1
        assert not path.exists()

        (tmp_path / "elsewhere.db").rename(path)
        wait_for("the file", lambda: status(served, "readyz?writable=true") == 200)
        add_task(served, "back")
