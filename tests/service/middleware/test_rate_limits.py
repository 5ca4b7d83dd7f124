"""Quotas of keys: rates and concurrency in a worker, stored tasks and bytes, and their use."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from prompt_serve.cli.main import main
from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.middleware.rate_limits import RateLimits
from prompt_serve.service.permissions import Permissions, Quota
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService, open_keys

PNG = {"content-type": "image/png"}
NEVER = 0.001  # per second: the second request waits for a quarter of an hour


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("rate", [0.5, 1, 2, 7.5, 100])
@pytest.mark.parametrize("pause_s", [0.01, 0.3, 2.0])
def test_a_rate_is_kept_however_often_a_client_tries(rate: float, pause_s: float) -> None:
    clock = Clock()
    limits, quota = RateLimits(clock), Quota(requests_per_s=rate)
    admitted = 0
    waits_s = []
    end = clock.now + 200
    while clock.now < end:
        try:
            with limits.request("a", quota):
                admitted += 1
        except QuotaExceeded as error:
            waits_s.append(error.retry_after_s)
        clock.now += pause_s
    assert all(0 < wait_s <= 1 / rate for wait_s in waits_s)
    burst = max(1.0, rate) + 1
    assert admitted <= 200 * rate + burst
    assert admitted >= min(200 * rate, 200 / pause_s) * 0.5


@pytest.mark.parametrize("images", [1, 3, 10, 64, 500])
def test_a_request_with_many_images_passes_and_the_next_one_waits_for_them(images: int) -> None:
    clock = Clock()
    limits, quota = RateLimits(clock), Quota(images_per_s=10)
    limits.take("a", quota, "images", images)
    if images < 10:
        limits.take("a", quota, "images", 10 - images)
    wait_s = (max(images, 10) - 10 + 1) / 10
    with pytest.raises(QuotaExceeded, match="may send 10 images per second") as refused:
        limits.take("a", quota, "images", 1)
    assert refused.value.retry_after_s == pytest.approx(wait_s)
    limits.take("b", quota, "images", 1)  # another key
    clock.now += wait_s
    limits.take("a", quota, "images", 1)


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 40])
def test_no_more_requests_run_at_once_than_allowed(limit: int) -> None:
    limits, quota = RateLimits(), Quota(concurrency=limit)
    with ExitStack() as running:
        for _ in range(limit):
            running.enter_context(limits.request("a", quota))
        with pytest.raises(QuotaExceeded, match="in progress"):
            running.enter_context(limits.request("a", quota))
        running.enter_context(limits.request("b", quota))
    with limits.request("a", quota):
        pass


def test_a_changed_quota_holds_from_the_next_request_on() -> None:
    limits = RateLimits(Clock())
    with limits.request("a", Quota(requests_per_s=NEVER)):
        pass
    with pytest.raises(QuotaExceeded), limits.request("a", Quota(requests_per_s=NEVER)):
        pass
    with limits.request("a", Quota()):
        assert limits.headers("a", Quota()) == {}


@contextmanager
def key_of(
    secured: SecuredService, namespace: str = "quota", **quota: float
) -> Iterator[httpx.Client]:
    """Client with a key for the tasks of a namespace; key and tasks are gone at the end."""
    with open_keys(secured.served.home) as keys:
        permissions = Permissions.checked(["read", "classify", "upload"], [f"{namespace}/*"])
        token, key = keys.create("limited", permissions, quota=Quota(**quota))  # type: ignore[arg-type]
    try:
        with secured.client(token) as http:
            yield http
    finally:
        with secured.client(secured.admin) as operator:
            for task in operator.get(f"/v1/tasks?search={namespace}/").json()["tasks"]:
                operator.delete(f"/v1/tasks/{task['name']}")
        with open_keys(secured.served.home) as keys:
            keys.revoke(key.id)


def create(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/v1/tasks", json={"name": name, "class_names": [name, "b"]})


def refused(answer: httpx.Response, quota: str) -> None:
    assert answer.status_code == 429, answer.text
    problem = answer.json()
    assert (problem["code"], problem["quota"]) == ("quota-exceeded", quota)
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.serve
def test_requests_per_second(secured: SecuredService) -> None:
    with key_of(secured, requests_per_s=NEVER) as http:
        first, second = http.get("/v1/info"), http.get("/v1/info")
        assert http.get("/livez").status_code == 200
    assert first.status_code == 200
    assert first.headers["ratelimit-policy"] == '"requests";q=1;w=1000'
    assert first.headers["ratelimit"].startswith('"requests";r=0;t=')
    refused(second, "requests_per_s")
    assert second.headers["ratelimit-policy"] == first.headers["ratelimit-policy"]


@pytest.mark.serve
def test_images_per_second(secured: SecuredService) -> None:
    with key_of(secured, images_per_s=NEVER) as http:
        create(http, "quota/a").raise_for_status()
        answers = [
            http.post(path, content=picture(), headers=PNG)
            for path in ("/v1/classify?task=quota/a", "/v1/embed", "/v1/classify?task=quota/a")
        ]
        assert http.get("/v1/tasks").status_code == 200
    assert answers[0].status_code == 200
    for answer in answers[1:]:
        refused(answer, "images_per_s")
        assert answer.headers["ratelimit-policy"] == '"images";q=1;w=1000'


@pytest.mark.serve
def test_concurrency(secured: SecuredService) -> None:
    body = b'{"name": "quota/a", "class_names": ["a", "b"]}'
    with key_of(secured, concurrency=1) as http:
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['authorization']}"
            f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        while True:  # until the reader below is not answered before it
            with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as sock:
                sock.settimeout(30)
                sock.sendall(head)  # in progress until its body is there
                while (refused := http.get("/v1/tasks")).status_code == 200:
                    if select.select([sock], [], [], 0.01)[0]:
                        break  # refused itself
                else:
                    sock.sendall(body)
                    answer = sock.recv(100)
                    break
        assert refused.status_code == 429
        assert refused.json()["quota"] == "concurrency"
        assert answer.startswith(b"HTTP/1.1 201")
        assert create(http, "quota/b").status_code == 201


@pytest.mark.serve
def test_number_of_tasks(secured: SecuredService) -> None:
    with key_of(secured, tasks=2) as http:
        assert [create(http, f"quota/{name}").status_code for name in "ab"] == [201, 201]
        refused(create(http, "quota/c"), "tasks")
        refused(http.put("/v1/tasks/quota/d/alias", json={"of": "quota/a"}), "tasks")
        assert create(http, "quota/a").status_code == 200
        assert http.get("/v1/tasks/quota/c").status_code == 404
        assert http.delete("/v1/tasks/quota/a").status_code == 204
        assert create(http, "quota/c").status_code == 201
        refused(http.post("/v1/tasks/quota/a/rollback"), "tasks")


@pytest.mark.serve
def test_stored_bytes_with_their_versions(secured: SecuredService) -> None:
    with key_of(secured, "sizes") as http:
        size = create(http, "sizes/a").json()["size_bytes"]
    with key_of(secured, "bytes", stored_bytes=3 * size) as http:
        for name in ("c", "d"):
            body = {"name": "bytes/a", "class_names": ["sizes/" + name, "b"]}
            http.post("/v1/tasks", json=body).raise_for_status()
        big = {"name": "bytes/b", "class_names": ["x" * 20 + str(n) for n in range(100)]}
        refused(http.post("/v1/tasks", json=big), "stored_bytes")
        assert http.get("/v1/tasks/bytes/b").status_code == 404


@pytest.mark.serve
def test_deleted_tasks_make_room_oldest_first(secured: SecuredService) -> None:
    """Their versions are kept for a rollback, and nothing but a change could ever drop them."""
    with key_of(secured, "sizes") as http:
        size = create(http, "sizes/n0").json()["size_bytes"]
    with key_of(secured, "room", stored_bytes=4 * size) as http:
        for n in range(9):
            create(http, f"room/n{n}").raise_for_status()
            http.delete(f"/v1/tasks/room/n{n}").raise_for_status()
        kept = [http.post(f"/v1/tasks/room/n{n}/rollback").status_code for n in range(9)]
        assert kept == [404] * 5 + [200] * 4
        refused(create(http, "room/n9"), "stored_bytes")
        listed = http.get("/v1/tasks").json()["tasks"]
        assert [task["name"] for task in listed] == [f"room/n{n}" for n in range(5, 9)]


@pytest.mark.serve
def test_usage_is_in_the_metrics_and_in_the_list(secured: SecuredService, tmp_path: Path) -> None:
    with key_of(secured) as http:
        create(http, "quota/a").raise_for_status()
        http.post("/v1/embed", content=picture(), headers=PNG).raise_for_status()
        with secured.client(secured.admin) as operator:
            metrics = operator.get("/metrics").text
        database = f"sqlite:///{secured.served.home / 'registry.db'}"
        arguments = ["keys", "usage", "--database", database]
        listed = CliRunner().invoke(main, arguments)
        lines = CliRunner().invoke(main, [*arguments, "--json"]).output.splitlines()
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if "key_" in line)
    assert float(values['prompt_serve_key_requests_total{key="limited"}']) >= 2
    assert float(values['prompt_serve_key_images_total{key="limited"}']) >= 1
    row = next(json.loads(line) for line in lines if '"limited"' in line)
    assert row["stored_tasks"] == 1
    assert row["stored_bytes"] > 0
    assert "limited" in listed.output
