"""Prompts of the image tower over HTTP: mixed with all others, in the fewest passes."""

import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.client import Client
from prompt_serve.errors import RequestInvalid
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.schemas import ClassifyAnswer, ImageLine
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import FloatArray
from tests.backbones import TEXT_WIDTH
from tests.service.one_task import check, embedding_of, logits_of
from tests.service.process import Served
from tests.service.prompts import image_prompts, learned_prompt, picture, probed, unprobed

pytestmark = pytest.mark.serve

PETS = ["cat", "dog", "hamster"]
IMAGES = [picture(seed) for seed in range(3)]
NDJSON = {"accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def prompts(tiny_backbone: Backbone) -> dict[str, Prompt]:
    """A prompt of every kind that changes the image tower, and two text prompts, by task name."""
    made = {
        f"image-{index}": probed(unprobed(tiny_backbone, PETS, text, image), tiny_backbone)
        for index, (text, image) in enumerate(image_prompts(TEXT_WIDTH, 64).values())
    }
    text = {f"text-{seed}": learned_prompt(tiny_backbone, PETS, seed=seed) for seed in range(2)}
    return {**made, **text}


@pytest.fixture
def tasks(http: httpx.Client, prompts: dict[str, Prompt]) -> Iterator[list[str]]:
    for name, prompt in prompts.items():
        assert http.put(f"/v1/tasks/{name}", content=to_bytes(prompt)).is_success
        http.put(f"/v1/tasks/{name}/tags", json={"tags": ["mixed"]}).raise_for_status()
    yield [*prompts]
    for name in prompts:
        http.delete(f"/v1/tasks/{name}")


@pytest.fixture(scope="module")
def expected(
    prompts: dict[str, Prompt], bundle: Bundle, tiny_backbone: Backbone
) -> dict[str, list[FloatArray]]:
    """Logits of every task for every image, one task and image at a time, in PyTorch."""
    return {
        name: [logits_of(prompt, image, bundle, tiny_backbone) for image in IMAGES]
        for name, prompt in prompts.items()
    }


def post(
    http: httpx.Client, images: list[bytes], tasks: list[str], **options: str
) -> httpx.Response:
    files = [("image", (f"{index}.png", image)) for index, image in enumerate(images)]
    return http.post("/v1/classify", files=files, data={"task": tasks, "top_k": "3", **options})


def passes(response: httpx.Response) -> int:
    found = re.search(r'passes;desc="(\d+)"', response.headers["server-timing"])
    assert found is not None, response.headers["server-timing"]
    return int(found[1])


def test_tasks_of_all_kinds_answer_in_one_request_as_each_alone(
    http: httpx.Client, tasks: list[str], expected: dict[str, list[FloatArray]]
) -> None:
    response = post(http, IMAGES, tasks)

    results = ClassifyAnswer.model_validate_json(response.content).results
    for index, result in enumerate(results):
        assert [found.task for found in result.predictions or ()] == tasks
        for found in result.predictions or ():
            check(found, expected[found.task][index])
    # The text prompts share the plain pass.
    assert passes(response) == len(IMAGES) * (len(tasks) - 1)


def test_equal_vectors_share_a_pass_and_text_prompts_need_no_other(
    http: httpx.Client, tasks: list[str], prompts: dict[str, Prompt]
) -> None:
    http.put("/v1/tasks/twin", content=to_bytes(prompts["image-1"])).raise_for_status()

    assert passes(post(http, IMAGES[:1], ["image-1", "twin"])) == 1
    assert passes(post(http, IMAGES[:1], ["text-0", "text-1"])) == 1
    assert passes(post(http, IMAGES, ["twin", "text-0", "image-1"])) == 2 * len(IMAGES)
    http.delete("/v1/tasks/twin")


@pytest.mark.parametrize("top_tasks", [None, 1, 4])
def test_streams_and_best_tasks_have_the_same_answers(
    top_tasks: int | None,
    http: httpx.Client,
    tasks: list[str],
    expected: dict[str, list[FloatArray]],
) -> None:
    files = [("image", ("0.png", IMAGES[0]))]
    data = {"tag": "mixed", "top_k": "3"} | ({"top_tasks": str(top_tasks)} if top_tasks else {})

    response = http.post("/v1/classify", files=files, data=data, headers=NDJSON)

    *lines, last = response.text.splitlines()
    assert '"complete":true' in last
    found = [ImageLine.model_validate_json(line).prediction for line in lines]
    assert len(found) == (top_tasks or len(tasks))
    for prediction in found:
        assert prediction is not None
        check(prediction, expected[prediction.task][0])
    if top_tasks:
        best = [prediction.classes[0].probability for prediction in found if prediction]
        assert best == sorted(best, reverse=True)


def test_a_new_version_and_a_rollback_change_the_vectors(
    http: httpx.Client,
    tasks: list[str],
    prompts: dict[str, Prompt],
    expected: dict[str, list[FloatArray]],
) -> None:
    order = ["image-0", "image-2", "text-0", "image-3"]
    for name in order:
        http.put("/v1/tasks/turning", content=to_bytes(prompts[name])).raise_for_status()
        found = ClassifyAnswer.model_validate_json(post(http, IMAGES[:1], ["turning"]).content)
        check((found.results[0].predictions or [])[0], expected[name][0])
    for name in ("text-0", "image-3"):  # a rollback is a version too: back, and forth again
        http.post("/v1/tasks/turning/rollback").raise_for_status()
        found = ClassifyAnswer.model_validate_json(post(http, IMAGES[:1], ["turning"]).content)
        check((found.results[0].predictions or [])[0], expected[name][0])
    http.delete("/v1/tasks/turning")


def test_passes_are_limited_whatever_the_form(http: httpx.Client, tasks: list[str]) -> None:
    limit = http.get("/v1/info").json()["limits"]["max_image_passes"]
    images = IMAGES[:1] * 64
    files = [("image", (f"{index}.png", image)) for index, image in enumerate(images)]

    for headers, data in (
        ({}, {"tag": "mixed"}),
        (NDJSON, {"tag": "mixed"}),
        ({}, {"tag": "mixed", "top_tasks": "1"}),
    ):
        refused = http.post("/v1/classify", files=files, data=data, headers=headers)
        assert refused.status_code == 413
        assert refused.json()["limit"] == limit
        assert "448 passes through the image encoder" in refused.json()["detail"]


@pytest.mark.parametrize("name", ["image-0", "image-2", "image-3", "text-0"])
def test_embeddings_are_those_of_the_tasks_tower(
    name: str,
    http: httpx.Client,
    tasks: list[str],
    prompts: dict[str, Prompt],
    bundle: Bundle,
    tiny_backbone: Backbone,
) -> None:
    wanted = embedding_of(prompts[name], IMAGES[1], bundle, tiny_backbone)[0]
    png = {"content-type": "image/png"}
    files = {"image": IMAGES[1]}

    for response in (
        http.post("/v1/embed", content=IMAGES[1], headers=png, params={"task": name}),
        http.post("/v1/embed", files=files, data={"task": name}),
        http.post("/v1/embed", files=files, params={"task": name}),
    ):
        found = response.json()["results"][0]["embedding"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_client_embeds_for_a_task(
    served: Served,
    tasks: list[str],
    prompts: dict[str, Prompt],
    bundle: Bundle,
    tiny_backbone: Backbone,
) -> None:
    with Client(served.url) as client:
        found = client.embed(IMAGES, task="image-3")
        with pytest.raises(RequestInvalid, match="made for task 'image-3'"):
            client.score_embeddings(found, "text-0")

    wanted = [embedding_of(prompts["image-3"], image, bundle, tiny_backbone)[0] for image in IMAGES]
    np.testing.assert_allclose(found.vectors, np.stack(wanted), atol=1e-5)


def test_an_embedding_has_one_task(http: httpx.Client, tasks: list[str]) -> None:
    files = {"image": IMAGES[0]}

    two = http.post("/v1/embed", files=files, data={"task": tasks[:2]})
    unknown = http.post("/v1/embed", files=files, data={"task": "no-such-task"})

    assert (two.status_code, unknown.status_code) == (422, 404)
    assert "names 2 tasks; expected one" in two.json()["detail"]


def test_embeddings_of_the_plain_tower_are_scored_by_the_other_tasks_only(
    http: httpx.Client, tasks: list[str]
) -> None:
    embedded = http.post("/v1/embed", files={"image": IMAGES[0]}).json()["results"][0]
    body = {"embeddings": [embedded["embedding"]]}

    named = http.post("/v1/score", json={**body, "tasks": ["text-0", "image-2"]})
    by_tag = http.post("/v1/score", json={**body, "tags": ["mixed"]})

    assert named.status_code == 422
    assert "'image-2' has learned vectors for the image tower" in named.json()["detail"]
    found = by_tag.json()["results"][0]["predictions"]
    assert [prediction["task"] for prediction in found] == ["text-0", "text-1"]


def test_metrics_count_the_passes(http: httpx.Client, tasks: list[str]) -> None:
    def counted() -> dict[str, float]:
        text = http.get("/metrics").text
        found = re.findall(r'prompt_serve_image_passes_total\{kind="(\w+)"\} (\S+)', text)
        return {kind: float(value) for kind, value in found}

    before = counted()
    post(http, IMAGES, ["text-0", "image-0", "image-1"])
    after = counted()

    assert after["plain"] - before["plain"] == len(IMAGES)
    assert after["prompted"] - before["prompted"] == 2 * len(IMAGES)
