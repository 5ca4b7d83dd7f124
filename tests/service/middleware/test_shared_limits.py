"""Quotas of keys hold over all workers of a service, also while these are killed or stopped."""

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.middleware import shared_usage
from prompt_serve.service.middleware.rate_limits import RateLimits
from prompt_serve.service.permissions import Permissions, Quota
from tests.service.process import Served, service
from tests.service.secured_service import make_keys, open_keys
from tests.service.test_faults import wait_for, workers

NEVER = 0.001  # per second
# Answers each line of its input: [command, key, number, quota].
WORKER = """
import json, sys, time
from contextlib import ExitStack
from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.middleware import shared_usage
from prompt_serve.service.middleware.rate_limits import RateLimits
from prompt_serve.service.permissions import Quota

if "patient" in sys.argv:
    shared_usage._MAX_WAIT_S = 60
clock = (lambda: 1000.0) if "stopped clock" in sys.argv else time.monotonic
limits, running = RateLimits(clock), ExitStack()
for line in sys.stdin:
    command, key, number, quota = json.loads(line)
    quota = Quota(**quota)
    admitted = 0
    for _ in range(number if command != "images" else 1):
        try:
            if command == "images":
                limits.take(key, quota, "images", number)
            elif command == "begin":
                running.enter_context(limits.request(key, quota))
            elif command == "end":
                running.close()
            else:
                with limits.request(key, quota):
                    pass
            admitted += 1
        except QuotaExceeded:
            pass
    print(json.dumps([admitted, limits.headers(key, quota).get("RateLimit")]), flush=True)
"""


class Worker:
    """Process that counts requests as a worker does."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, command: str, number: int = 1, key: str = "a", **quota: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, key, number, quota]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[int, str | None]:
        assert self.process.stdout is not None
        admitted, header = json.loads(self.process.stdout.readline())
        return admitted, header

    def ask(self, command: str, number: int = 1, key: str = "a", **quota: float) -> int:
        """Return how many of the requests were admitted."""
        self.send(command, number, key, **quota)
        return self.answer()[0]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Start of a worker of one service that has three at once."""
    monkeypatch.setenv(shared_usage._VARIABLE, "")  # as before, at the end
    shared_usage.prepare_file(tmp_path, 3)
    with ExitStack() as stack:

        def start(*arguments: str) -> Worker:
            worker = Worker(*arguments)
            stack.enter_context(worker.process)
            stack.callback(worker.process.kill)
            return worker

        yield start


@pytest.mark.parametrize("rate", [NEVER, 0.5 * NEVER, 3 + NEVER, 20 + NEVER, 200])
def test_a_rate_holds_over_all_workers(rate: float, start: Callable[..., Worker]) -> None:
    """They try as fast as they can, at the same time."""
    three = [start("patient") for _ in range(3)]
    for worker in three:
        worker.ask("request", key="warm up")
    begun = time.monotonic()
    for worker in three:
        worker.send("request", 400, requests_per_s=rate)
    admitted = sum(worker.answer()[0] for worker in three)
    most = max(1, rate) + rate * (time.monotonic() - begun)
    assert min(1200, max(1, int(rate))) <= admitted <= most


@pytest.mark.parametrize("rate", [1, 500, 4000, 20_000, 40_000])
def test_no_request_is_lost_when_all_count_at_once(rate: int, start: Callable[..., Worker]) -> None:
    three = [start("stopped clock", "patient") for _ in range(3)]
    for worker in three:
        worker.ask("request", key="warm up")
    for worker in three:
        worker.send("request", 20_000, requests_per_s=rate)
    admitted = sum(worker.answer()[0] for worker in three)
    assert admitted == rate


@pytest.mark.parametrize("images", [1, 2, 7, 64, 500])
def test_images_of_one_worker_are_seen_by_the_others(
    images: int, start: Callable[..., Worker]
) -> None:
    one, two, three = (start() for _ in range(3))
    rate = 1000 * NEVER
    assert one.ask("images", images, images_per_s=rate) == 1
    assert two.ask("images", 1, images_per_s=rate) == 0
    three.send("images", 1, images_per_s=rate)
    admitted, header = three.answer()
    assert admitted == 0
    assert header is not None
    left, reset_s = (int(part.split("=")[1]) for part in header.split(";")[1:])
    assert left == 0
    assert images - 30 < reset_s <= images
    assert two.ask("images", 1, key="b", images_per_s=rate) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 50])
def test_concurrency_holds_over_all_workers_and_dies_with_them(
    limit: int, start: Callable[..., Worker]
) -> None:
    one, two, three = (start() for _ in range(3))
    first = (limit + 1) // 2
    assert one.ask("begin", first, concurrency=limit) == first
    assert two.ask("begin", limit, concurrency=limit) == limit - first
    assert [worker.ask("request", concurrency=limit) for worker in (one, two, three)] == [0] * 3
    assert three.ask("request", key="b", concurrency=limit) == 1

    one.process.kill()
    one.process.wait()
    assert three.ask("begin", limit, concurrency=limit) == first
    four = start()  # in its place
    assert four.ask("request", concurrency=limit) == 0
    three.ask("end")
    assert four.ask("begin", limit, concurrency=limit) == first
    assert two.ask("request", concurrency=limit) == 0


def test_a_worker_that_is_killed_again_and_again_leaves_nothing(
    start: Callable[..., Worker],
) -> None:
    last = start()
    for _ in range(8):  # more than there are columns
        worker = start()
        assert worker.ask("begin", 5, concurrency=5) == 5
        assert last.ask("request", concurrency=5) == 0
        worker.process.kill()
        worker.process.wait()
    assert last.ask("request", 3, concurrency=5) == 3


def test_a_worker_that_is_stopped_with_the_lock_stops_nobody(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; file = open(sys.argv[1], 'r+b'); "
            "fcntl.lockf(file, fcntl.LOCK_EX, 1); print(flush=True); time.sleep(600)",
            str(tmp_path / "key-usage"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        worker = start()
        assert worker.ask("request", requests_per_s=NEVER) == 1
        assert holder.stdout is not None
        holder.stdout.readline()
        assert worker.ask("request", 2000, requests_per_s=NEVER) == 0  # 80 s if each one waited
        assert worker.ask("begin", 2, concurrency=1) == 1
    finally:
        holder.kill()
        holder.communicate()
    assert worker.ask("request", 10, concurrency=1) == 0


def test_any_number_of_keys_is_counted_and_those_that_run_are_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_usage, "_SLOTS", 50)
    monkeypatch.setattr(shared_usage, "_IDS_END", 50 * 16)
    limits, one, rate = RateLimits(), Quota(concurrency=1), Quota(requests_per_s=NEVER)
    with ExitStack() as running:
        for n in range(40):
            running.enter_context(limits.request(f"runs {n}", one))
        for n in range(1000):
            with limits.request(f"key {n}", rate):
                pass
            with pytest.raises(QuotaExceeded), limits.request(f"key {n}", rate):
                pass
            with pytest.raises(QuotaExceeded), limits.request(f"runs {n % 40}", one):
                pass
    for n in range(40):
        with limits.request(f"runs {n}", one):
            pass


@pytest.mark.parametrize("keys", [51, 55, 60, 75, 100])
def test_more_running_keys_than_there_is_room_for_are_all_answered(
    keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_usage, "_SLOTS", 50)
    monkeypatch.setattr(shared_usage, "_IDS_END", 50 * 16)
    limits, quota = RateLimits(), Quota(concurrency=100)
    with ExitStack() as running:
        for n in range(keys):
            running.enter_context(limits.request(f"runs {n}", quota))
    with limits.request("another", Quota(concurrency=1)):
        pass


def test_two_keys_of_one_name_share_a_bucket_though_their_rates_differ() -> None:
    limits = RateLimits(lambda: 1000.0)
    slow, fast = Quota(requests_per_s=2), Quota(requests_per_s=5)
    admitted = 0
    for quota in (slow, fast) * 10:
        try:
            with limits.request("a", quota):
                admitted += 1
        except QuotaExceeded:
            pass
    assert admitted == 2


@contextmanager
def limited_service(home: Path, bundle: Path, **quota: float) -> Iterator[tuple[Served, str]]:
    """A service of three workers, and a key with a quota."""
    make_keys(home, admin="admin")
    with open_keys(home) as keys:
        permissions = Permissions.checked(["read", "upload"])
        token, _ = keys.create("limited", permissions, quota=Quota(**quota))  # type: ignore[arg-type]
    with service(home, bundle, workers="3", min_body_bytes_per_s="0") as served:
        wait_for("three workers", lambda: _answering(served) == 3)
        yield served, token


def _answering(served: Served) -> int:
    """Return the number of workers that have the socket and take connections from it."""
    return sum(
        any(one.laddr and one.laddr.port == httpx.URL(served.url).port for one in listening)
        for listening in (worker.net_connections() for worker in workers(served))
    )


@pytest.mark.serve
@pytest.mark.long
def test_a_service_of_three_workers_keeps_the_quotas_of_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with limited_service(tmp_path, tiny_bundle, requests_per_s=NEVER) as (served, token):
        key = {"authorization": f"Bearer {token}"}
        answers = [httpx.get(f"{served.url}/v1/info", headers=key, timeout=60) for _ in range(40)]
        assert sorted(answer.status_code for answer in answers) == [200] + [429] * 39
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {
            '"requests";q=1;w=1000'
        }
        assert all(answer.headers["ratelimit"].startswith('"requests";r=0') for answer in answers)
        for process in workers(served):  # what they knew was theirs alone
            process.kill()
        wait_for("others", lambda: _answering(served) == 3)
        after = httpx.get(f"{served.url}/v1/info", headers=key, timeout=60)
        assert after.status_code == 429


@pytest.mark.serve
@pytest.mark.long
def test_requests_of_a_killed_worker_no_longer_count(tiny_bundle: Path, tmp_path: Path) -> None:
    with limited_service(tmp_path, tiny_bundle, concurrency=4) as (served, token):
        url = httpx.URL(served.url)
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        ).encode()
        with ExitStack() as stack:
            connections: list[socket.socket] = []

            def are_four_in_progress() -> bool:
                """Open more if there are fewer: their bodies never come, so they wait or are
                refused, or end with their worker."""
                answered = select.select(connections, [], [], 0.5)[0]
                in_progress = [one for one in connections if one not in answered]
                for _ in range(8 if len(in_progress) < 4 else 0):
                    connection = socket.create_connection((url.host, url.port or 80))
                    stack.enter_context(connection)
                    connection.sendall(head)
                    in_progress.append(connection)
                connections[:] = in_progress
                return len(in_progress) == 4

            wait_for("four requests", are_four_in_progress)
            for process in workers(served):
                process.kill()
                process.wait()
                wait_for("four requests", are_four_in_progress)
