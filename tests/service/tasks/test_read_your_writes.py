"""What an upload was answered for is what the next request gets, from whichever process answers.

Every request comes over a connection of its own, so the processes take turns at random.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.databases import new_database
from tests.service.process import Served, service
from tests.service.prompts import picture

pytestmark = pytest.mark.serve

IMAGE = picture(3)
PNG = {"content-type": "image/png"}


def stale_answers(services: Sequence[Served], rounds: int) -> int:
    """Change a task through one service after the other; ask another one right away."""
    stale = 0
    for i in range(rounds):
        writer, reader = services[i % len(services)], services[(i + 1) % len(services)]
        body = {"name": "swapped", "class_names": ["cat", f"dog {i % 7}"]}
        put = httpx.post(f"{writer.url}/v1/tasks", json=body, timeout=120)
        assert put.status_code in (200, 201), put.text
        asked = classify(reader)
        assert asked.status_code == 200, asked.text
        [prediction] = asked.json()["results"][0]["predictions"]
        stale += prediction["version"] != put.json()["version"]
    print({"stale": stale, "of": rounds})
    return stale


def classify(served: Served) -> httpx.Response:
    url = f"{served.url}/v1/classify?task=swapped"
    return httpx.post(url, content=IMAGE, headers=PNG, timeout=120)


def test_services_that_share_postgresql_serve_each_others_uploads(
    postgres: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    url = new_database(postgres)
    with ExitStack() as running:
        services = [
            running.enter_context(
                service(tmp_path / str(n), tiny_bundle, database_url=url, workers=str(n))
            )
            for n in (1, 2)
        ]
        assert stale_answers(services, 40) == 0

        # A rollback and a deletion through one hold in the other as well.
        back = httpx.post(f"{services[0].url}/v1/tasks/swapped/rollback", timeout=120).json()
        asked = classify(services[1])
        assert asked.json()["results"][0]["predictions"][0]["version"] == back["version"]
        httpx.delete(f"{services[1].url}/v1/tasks/swapped", timeout=120).raise_for_status()
        assert classify(services[0]).status_code == 404


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_serve_each_others_uploads(tiny_bundle: Path, tmp_path: Path, workers: int) -> None:
    with service(tmp_path / "home", tiny_bundle, workers=str(workers)) as served:
        assert stale_answers([served], 1000) == 0


@pytest.mark.long
def test_no_answer_of_a_thousand_is_stale_on_postgresql(
    postgres: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    url = new_database(postgres)
    with ExitStack() as running:
        services = [
            running.enter_context(service(tmp_path / n, tiny_bundle, database_url=url))
            for n in ("one", "other")
        ]
        assert stale_answers(services, 1000) == 0
