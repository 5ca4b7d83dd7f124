"""Uploads and deletes while clients classify: nobody fails, nobody gets half of a prompt."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.prompt_file import Prompt, to_bytes, version_of
from prompt_serve.scoring import class_logits
from prompt_serve.service.inference.engine import Engine
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.service.process import Served
from tests.service.prompts import learned_prompt, picture

pytestmark = pytest.mark.serve

CLIENTS = 16
MIN_SECONDS, MAX_SECONDS = 4.0, 60.0
LOGIT_ROUNDING = 5e-5  # batches of other sizes, times a logit scale of 14


class Known:
    """What each version must answer for one image."""

    def __init__(self, backbone: Backbone, bundle: Bundle, engine: Engine, image: bytes) -> None:
        pixels = pixels_from_bytes(image, bundle.manifest.preprocessing)
        self._features = engine.encode_images(pixels[np.newaxis])
        self._backbone, self._scale = backbone, bundle.manifest.logit_scale
        self._answers: dict[str, tuple[tuple[str, ...], FloatArray]] = {}

    def add(self, prompt: Prompt) -> bytes:
        data = to_bytes(prompt)
        features = class_features_of(prompt, self._backbone)
        logits = class_logits(self._features, features, self._scale)[0]
        self._answers[version_of(data)] = (prompt.class_names, logits)
        return data

    def check(self, prediction: dict[str, object]) -> str:
        """Version, class names and logits of an answer belong together; returns the version."""
        version = str(prediction["version"])
        names, logits = self._answers[version]
        scores = prediction["classes"]
        assert isinstance(scores, list)
        assert len(scores) == len(names)
        for score in scores:
            assert score["class_name"] == names[score["label"]]
            assert abs(score["logit"] - logits[score["label"]]) <= LOGIT_ROUNDING
        return version


@pytest.fixture
def image() -> bytes:
    return picture(11)


@pytest.fixture
def known(tiny_backbone: Backbone, bundle: Bundle, engine: Engine, image: bytes) -> Known:
    return Known(tiny_backbone, bundle, engine, image)


def test_uploads_and_deletes_under_load(
    served: Served, known: Known, tiny_backbone: Backbone, image: bytes
) -> None:
    old = known.add(learned_prompt(tiny_backbone, ["cat", "dog", "hen"], seed=1))
    new = known.add(learned_prompt(tiny_backbone, ["oak", "elm"], seed=2, dense=True))
    httpx.put(f"{served.url}/v1/tasks/swapped", content=old).raise_for_status()

    expected = {
        f"swapped {version_of(old)}",
        f"swapped {version_of(new)}",
        f"fleeting {version_of(old)}",
        "fleeting 404",
    }
    seen = asyncio.run(_swap_under_load(served.url, known, old, new, image, expected))

    print(dict(seen))
    assert seen.keys() == expected
    assert httpx.delete(f"{served.url}/v1/tasks/swapped").status_code == 204


async def _swap_under_load(
    url: str, known: Known, old: bytes, new: bytes, image: bytes, expected: set[str]
) -> Counter[str]:
    """Until every kind of answer was seen, on a slow machine too."""
    seen: Counter[str] = Counter()
    started = time.monotonic()

    def keep_running() -> bool:
        elapsed = time.monotonic() - started
        return elapsed < MIN_SECONDS or (elapsed < MAX_SECONDS and not expected <= seen.keys())

    limits = httpx.Limits(max_connections=CLIENTS + 4, max_keepalive_connections=CLIENTS + 4)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        await asyncio.gather(
            _upload(http, old, new, keep_running),
            *(_ask(http, known, n, image, keep_running, seen) for n in range(CLIENTS)),
        )
    return seen


async def _upload(
    http: httpx.AsyncClient, old: bytes, new: bytes, keep_running: Callable[[], bool]
) -> None:
    """Swap one name again and again, and make another come and go; each 2xx holds at once."""
    for data in itertools.cycle((new, old)):
        if not keep_running():
            break
        assert (await http.put("/v1/tasks/swapped", content=data)).status_code == 200
        assert (await http.get("/v1/tasks/swapped/file")).content == data
        assert (await http.put("/v1/tasks/fleeting", content=old)).status_code == 201
        await asyncio.sleep(0.1)
        assert (await http.delete("/v1/tasks/fleeting")).status_code == 204
        await asyncio.sleep(0.1)


async def _ask(
    http: httpx.AsyncClient,
    known: Known,
    n: int,
    image: bytes,
    keep_running: Callable[[], bool],
    seen: Counter[str],
) -> None:
    task = "fleeting" if n % 4 == 0 else "swapped"
    while keep_running():
        response = await http.post(
            f"/v1/classify?task={task}&top_k=9",
            content=image,
            headers={"content-type": "image/png"},
        )
        if task == "fleeting" and response.status_code == 404:
            assert response.json()["code"] == "task-not-found"
            seen["fleeting 404"] += 1
            continue
        assert response.status_code == 200, response.text
        (prediction,) = response.json()["results"][0]["predictions"]
        seen[f"{task} {known.check(prediction)}"] += 1


def test_uploads_of_one_name_at_once_leave_one_of_them_whole(
    served: Served, known: Known, tiny_backbone: Backbone, image: bytes
) -> None:
    files = [
        known.add(learned_prompt(tiny_backbone, [f"{seed}-{i}" for i in range(5)], seed=seed))
        for seed in range(8)
    ]
    url = f"{served.url}/v1/tasks/contested"
    with ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(lambda data: httpx.put(url, content=data, timeout=60).status_code, files)
        )
    answer = httpx.post(
        f"{served.url}/v1/classify?task=contested&top_k=9",
        content=image,
        headers={"content-type": "image/png"},
        timeout=60,
    ).json()
    last = httpx.get(url).json()["version"]
    httpx.delete(url)

    assert sorted(statuses) == [200] * 7 + [201]
    assert known.check(answer["results"][0]["predictions"][0]) == last


def test_a_full_queue_answers_429_and_recovers(served: Served, image: bytes) -> None:
    """The service of the tests queues 128 images; this asks for many times as many at once."""
    body = {"name": "busy", "class_names": ["a", "b"]}
    httpx.post(f"{served.url}/v1/tasks", json=body, timeout=60).raise_for_status()
    big = picture(5, size=(1500, 1500), kind="JPEG")

    def ask(_: int) -> httpx.Response:
        files = [("image", (str(i), big, "image/jpeg")) for i in range(24)]
        return httpx.post(
            f"{served.url}/v1/classify", files=files, data={"task": "busy"}, timeout=60
        )

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(ask, range(16)))
    statuses = Counter(response.status_code for response in responses)
    print(dict(statuses))

    assert statuses.keys() <= {200, 429}
    assert statuses[200] > 0
    assert statuses[429] > 0
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.json()["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    assert ask(0).status_code == 200
    httpx.delete(f"{served.url}/v1/tasks/busy")
