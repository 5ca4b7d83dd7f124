"""Over HTTP: all forms of input, many tasks, deadlines, clients that disconnect."""

import asyncio
import base64
import io
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlparse

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from prompt_serve.bundle import Bundle
from prompt_serve.client import Client
from prompt_serve.errors import BackboneMismatch, ImageInvalid
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.schemas import ClassifyAnswer, EmbedAnswer, ServiceInfo, TaskPrediction
from prompt_serve.service.http.tensor_bodies import NPY, SAFETENSORS
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.training.clip.backbone import Backbone
from tests.backbones import EMBED_DIM
from tests.service.http.test_http import classify, problem
from tests.service.inference.test_url_fetcher import Server
from tests.service.process import Served
from tests.service.prompts import learned_prompt, picture
from tests.service.unusual_images import unusual_images

pytestmark = pytest.mark.serve

PETS = ["cat", "dog", "hamster", "horse"]
# float32 rounding of batches of other sizes, times a logit scale of 14.
LOGIT_ROUNDING = 1e-4


@pytest.fixture(scope="module", autouse=True)
def tasks(served: Served, tiny_backbone: Backbone) -> Iterator[None]:
    for seed in range(3):
        body = to_bytes(learned_prompt(tiny_backbone, PETS, seed=seed))
        assert httpx.put(f"{served.url}/v1/tasks/in-{seed}", content=body).status_code < 300
    yield
    for seed in range(3):
        httpx.delete(f"{served.url}/v1/tasks/in-{seed}")


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def predictions(response: httpx.Response) -> list[list[TaskPrediction]]:
    assert response.status_code == 200, response.text
    results = ClassifyAnswer.model_validate_json(response.content).results
    return [result.predictions or [] for result in results]


def logits(response: httpx.Response) -> list[list[dict[str, float]]]:
    return [
        [{score.class_name: score.logit for score in task.classes} for task in image]
        for image in predictions(response)
    ]


def post(http: httpx.Client, path: str, body: bytes, kind: str, **query: Any) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": kind}, params=query or None)


def in_json(*images: bytes, prefix: str = "") -> list[str]:
    return [prefix + base64.b64encode(image).decode() for image in images]


def test_all_forms_of_the_same_images_get_the_same_logits(
    http: httpx.Client, bundle: Bundle
) -> None:
    images = [picture(seed) for seed in range(3)]
    pixels = np.stack([pixels_from_bytes(i, bundle.manifest.preprocessing) for i in images])
    query = {"task": ["in-0", "in-1"]}
    selector = {"tasks": query["task"]}
    embedded = post(http, "/v1/embed", npy(pixels), NPY)
    vectors = [r["embedding"] for r in embedded.json()["results"]]
    data_uris = in_json(*images, prefix="data:image/png;base64,")

    expected = logits(classify(http, images, query["task"]))
    forms = {
        "base64": http.post("/v1/classify", json={"images": in_json(*images), **selector}),
        "data URIs": http.post("/v1/classify", json={"images": data_uris, **selector}),
        "npy": post(http, "/v1/classify", npy(pixels), NPY, **query),
        "safetensors": post(http, "/v1/classify", save({"x": pixels}), SAFETENSORS, **query),
        "float16": post(http, "/v1/classify", npy((pixels / 255).astype("f2")), NPY, **query),
        "embeddings": http.post("/v1/score", json={"embeddings": vectors, **selector}),
        "float16 embeddings": post(
            http, "/v1/score", npy(np.asarray(vectors, dtype="f2")), NPY, **query
        ),
    }
    for index, image in enumerate(images):
        alone = logits(post(http, "/v1/classify", image, "image/png", **query))
        assert alone[0][0] == pytest.approx(expected[index][0], abs=LOGIT_ROUNDING)

    for form, response in forms.items():
        tolerance = 1e-2 if form == "float16 embeddings" else LOGIT_ROUNDING
        for found, expected_logits in zip(logits(response), expected, strict=True):
            for of_task, expected_of_task in zip(found, expected_logits, strict=True):
                assert of_task == pytest.approx(expected_of_task, abs=tolerance), form


def test_base64_is_read_as_programs_write_it(http: httpx.Client) -> None:
    image = picture(1, size=(40, 40))
    plain = base64.b64encode(image).decode()
    forms = {
        "plain": plain,
        "base64 of coreutils": base64.encodebytes(image).decode(),
        "Windows line breaks": "\r\n".join(plain[i : i + 64] for i in range(0, len(plain), 64)),
        "no padding": plain.rstrip("="),
        "URL-safe": base64.urlsafe_b64encode(image).decode(),
        "URL-safe, no padding": base64.urlsafe_b64encode(image).decode().rstrip("="),
        "spaces around": f"  {plain}\n",
        "data URI with line breaks": "data:image/png;base64,\n"
        + base64.encodebytes(image).decode(),
        "percent-encoded data URI": "data:image/png;base64," + quote(plain, safe=""),
    }

    response = http.post("/v1/classify", json={"images": [*forms.values()], "tasks": ["in-0"]})

    results = response.json()["results"]
    expected = results[0]["predictions"]
    for form, result in zip(forms, results, strict=True):
        assert result.get("predictions") == expected, form


def test_bad_items_fail_alone_in_every_form(http: httpx.Client) -> None:
    good = in_json(picture(1))[0]
    items = [good, "not base64!", "data:image/png,plain", in_json(b"no image")[0], good, ""]
    found = http.post("/v1/classify", json={"images": items, "tasks": ["in-0"]})
    embedded = http.post("/v1/embed", json={"images": items})
    vector = [0.1] * ServiceInfo.model_validate(http.get("/v1/info").json()).backbone.embed_dim
    scored = http.post(
        "/v1/score", json={"embeddings": [vector, [0.0] * len(vector)], "tasks": ["in-0"]}
    )

    codes = [r.get("error", {}).get("code") for r in found.json()["results"]]
    assert codes == [None, *["image-invalid"] * 3, None, "image-invalid"]
    assert [r.get("error", {}).get("code") for r in embedded.json()["results"]] == codes
    assert [r.get("error", {}).get("code") for r in scored.json()["results"]] == [
        None,
        "image-invalid",
    ]


def test_embeddings_have_unit_length_in_json_and_as_arrays(http: httpx.Client) -> None:
    files = [("image", (str(n), picture(n), "image/png")) for n in range(3)]
    files.insert(1, ("image", ("bad", b"no image", "image/png")))
    answers = {
        accept: http.post("/v1/embed", files=files, headers={"accept": accept})
        for accept in ("*/*", NPY, f"{SAFETENSORS}, */*", "application/json")
    }

    answer = EmbedAnswer.model_validate_json(answers["*/*"].content)
    assert [r.error.code if r.error else None for r in answer.results] == [
        None, "image-invalid", None, None,
    ]  # fmt: skip
    good = np.asarray([r.embedding for r in answer.results if r.embedding])
    np.testing.assert_allclose(np.linalg.norm(good, axis=1), 1, atol=1e-5)
    assert answers["application/json"].headers["content-type"] == "application/json"
    as_npy = np.load(io.BytesIO(answers[NPY].content))
    as_safetensors = load(answers[f"{SAFETENSORS}, */*"].content)["embeddings"]
    for rows, kind in ((as_npy, NPY), (as_safetensors, f"{SAFETENSORS}, */*")):
        assert rows.dtype == np.float32
        assert np.isnan(rows[1]).all()
        np.testing.assert_allclose(rows[[0, 2, 3]], good, atol=1e-5)
        assert answers[kind].headers["x-failed-images"] == "1"

    # What the service embedded, it scores: the file says which backbone it is of.
    body = answers[f"{SAFETENSORS}, */*"].content
    scored = post(http, "/v1/score", body, SAFETENSORS, task="in-0")
    assert [bool(r.get("error")) for r in scored.json()["results"]] == [False, True, False, False]
    other = save({"x": as_npy}, metadata={"fingerprint": "0" * 64})
    refused = problem(
        post(http, "/v1/score", other, SAFETENSORS, task="in-0"), 422, "backbone-mismatch"
    )
    assert "Embed the images here" in refused.detail


def test_tasks_are_named_by_name_version_tag_or_all(http: httpx.Client) -> None:
    for name, tags in (("in-0", ["first", "in-tests"]), ("in-2", ["in-tests"])):
        assert http.put(f"/v1/tasks/{name}/tags", json={"tags": tags}).status_code == 200
    version = http.get("/v1/tasks/in-1").json()["version"]
    pin = f"in-1@{version[:12]}"
    image = picture(5)

    def answered(*names: str, tags: list[str] | None = None) -> list[str]:
        body = {"images": in_json(image), "tasks": names, "tags": tags or []}
        (found,) = predictions(http.post("/v1/classify", json=body))
        return [prediction.task for prediction in found]

    assert answered(tags=["in-tests"]) == ["in-0", "in-2"]
    assert answered("in-2", "in-1", tags=["in-tests", "first"]) == ["in-2", "in-1", "in-0"]
    assert answered(pin, "in-1") == [pin, "in-1"]
    assert set(answered("*")) >= {"in-0", "in-1", "in-2"}
    assert answered("in-1", "*")[0] == "in-1"
    in_query = post(http, "/v1/classify?tag=in-tests&top_k=1", image, "image/png")
    in_form = http.post(
        "/v1/classify", files=[("image", ("a", image))], data={"tag": "in-tests", "top_k": "1"}
    )
    assert predictions(in_query) == predictions(in_form)
    nowhere = {"images": in_json(image), "tags": ["nowhere"]}
    problem(http.post("/v1/classify", json=nowhere), 404, "task-not-found")


def classify_json(
    http: httpx.Client, body: dict[str, Any], query: dict[str, Any]
) -> httpx.Response:
    fields = {{"task": "tasks", "tag": "tags"}.get(n, n): value for n, value in body.items()}
    images = in_json(picture(1))
    return http.post("/v1/classify", params=query, json={"images": images, **fields})


def classify_multipart(
    http: httpx.Client, body: dict[str, Any], query: dict[str, Any]
) -> httpx.Response:
    return http.post("/v1/classify", params=query, files={"image": picture(1)}, data=body)


@pytest.mark.parametrize("form", [classify_json, classify_multipart])
@pytest.mark.parametrize(
    ("body", "query", "expected", "top_k"),
    [
        ({"task": ["in-0"]}, {"top_k": 1}, ["in-0"], 1),
        ({"task": ["in-0"], "top_k": 2}, {"top_k": 5}, ["in-0"], 2),
        ({"task": ["in-0"]}, {"task": ["in-1", "in-2"]}, ["in-0", "in-1", "in-2"], 4),
        ({}, {"task": ["in-2"], "top_k": 3}, ["in-2"], 3),
        ({"top_k": 1}, {"task": "in-1"}, ["in-1"], 1),
        ({"task": ["in-0"]}, {"task": ["in-0"], "top_k": 9}, ["in-0", "in-0"], 4),
    ],
)
def test_query_and_body_agree(
    http: httpx.Client,
    form: Callable[[httpx.Client, dict[str, Any], dict[str, Any]], httpx.Response],
    body: dict[str, Any],
    query: dict[str, Any],
    expected: list[str],
    top_k: int,
) -> None:
    """Clients that are generated from the OpenAPI document send every default in the query."""
    ((*found,),) = predictions(form(http, body, query))
    assert [prediction.task for prediction in found] == expected
    assert {len(prediction.classes) for prediction in found} == {top_k}


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/score", "/v1/embed"])
@pytest.mark.parametrize("name", ["topk", "threshold", "tasks"])
def test_a_query_parameter_that_nobody_reads_is_refused(
    http: httpx.Client, path: str, name: str
) -> None:
    body = (
        {"images": in_json(picture(1))}
        if "score" not in path
        else {"embeddings": [[1.0] * EMBED_DIM]}
    )
    named = {} if "embed" in path else {"tasks": ["in-0"]}
    answer = http.post(path, params={name: "1"}, json={**body, **named})
    assert problem(answer, 422, "request-invalid").detail.startswith(f"Unknown field {name!r}")


def test_all_tasks_are_those_of_the_backbone_that_runs(
    served: Served, http: httpx.Client, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, PETS)
    other = prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    foreign = replace(prompt, backbone=other)
    new = NewTask(
        name="in-other", data=to_bytes(foreign), prompt=foreign, features=None, tags=("in-mixed",)
    )
    with closing(Database(f"sqlite:///{served.home / 'registry.db'}")) as database:
        Registry(database).put(new)
    http.put("/v1/tasks/in-0/tags", json={"tags": ["in-mixed"]})
    image = in_json(picture(5))

    def ask(**selection: list[str]) -> httpx.Response:
        return http.post("/v1/classify", json={"images": image, **selection})

    everything = [found.task for found in predictions(ask(tasks=["*"]))[0]]
    tagged = [found.task for found in predictions(ask(tags=["in-mixed"]))[0]]
    named = ask(tasks=["in-other"])
    http.delete("/v1/tasks/in-other").raise_for_status()

    assert "in-other" not in everything
    assert "in-0" in everything
    assert tagged == ["in-0"]
    problem(named, 422, "backbone-mismatch")


def test_invalid_requests_are_refused_in_every_form(http: httpx.Client) -> None:
    image = in_json(picture())
    width = http.get("/v1/info").json()["backbone"]["embed_dim"]
    cases: dict[str, list[Any]] = {
        "/v1/classify": [{}, {"images": image}, {"images": [], "tasks": ["in-0"]}, [], "x", None,
                         {"images": image, "tasks": ["in-0"], "topk": 1},
                         {"images": image, "tasks": ["in-0"], "top_k": 0},
                         {"images": [1], "tasks": ["in-0"]}],
        "/v1/embed": [{}, {"images": []}, {"images": image, "tasks": ["in-0"]}],
        "/v1/score": [{}, {"embeddings": [], "tasks": ["in-0"]}, {"embeddings": [[0.1] * width]},
                      {"embeddings": [[0.1] * (width + 1)], "tasks": ["in-0"]},
                      {"embeddings": [["x"]], "tasks": ["in-0"]}],
    }  # fmt: skip
    for path, bodies in cases.items():
        for wrong in bodies:
            problem(http.post(path, json=wrong), 422, "request-invalid")
        problem(post(http, path, b"{", "application/json"), 422, "request-invalid")
        problem(post(http, path, b"x", "text/plain"), 422, "request-invalid")
        problem(post(http, path, b"x", NPY), 422, "request-invalid")
        problem(post(http, path, b"x", SAFETENSORS), 422, "request-invalid")
    pixels = npy(np.zeros((1, 8, 8, 3), np.uint8))
    problem(post(http, "/v1/classify", pixels, NPY, task="in-0"), 422, "request-invalid")
    problem(post(http, "/v1/embed?tag=in-0", picture(), "image/png"), 422, "request-invalid")


def test_limits_of_every_kind_are_published_and_hold(http: httpx.Client, bundle: Bundle) -> None:
    limits = ServiceInfo.model_validate_json(http.get("/v1/info").content).limits
    width, side = bundle.manifest.backbone.embed_dim, bundle.manifest.preprocessing.image_size
    assert limits.max_embeddings
    assert limits.max_scores
    too_many = np.ones((limits.max_embeddings + 1, width), np.float32)
    names = ["in-0"] * (limits.max_tasks + 1)
    over = [
        post(http, "/v1/score", npy(too_many), NPY, task="in-0"),
        post(http, "/v1/score", npy(too_many[:-1]), NPY, task="in-0", top_k=limits.max_scores),
        http.post("/v1/classify", json={"images": in_json(picture()), "tasks": names}),
        http.post("/v1/classify", json={"images": [""] * (limits.max_images + 1), "tasks": ["x"]}),
        post(http, "/v1/embed", npy(np.zeros((limits.max_images + 1, side, side, 3), "u1")), NPY),
    ]
    for response in over:
        problem(response, 413, "request-too-large")
    assert post(http, "/v1/score", npy(too_many[:-1]), NPY, task="in-0").status_code == 200


def test_images_behind_urls_are_fetched_where_that_is_switched_on(http: httpx.Client) -> None:
    image = picture(7)

    web = Server(image)
    url = web.url("/image")
    try:
        forms = [
            http.post(
                "/v1/classify", json={"images": [url, "http://10.0.0.1/"], "tasks": ["in-0"]}
            ),
            http.post(
                "/v1/classify",
                files=[("image_url", (None, url)), ("image_url", (None, "http://localhost:1/"))],
                data={"task": "in-0"},
            ),
        ]
    finally:
        web.close()
    direct = predictions(classify(http, [image], ["in-0"]))[0]
    for response in forms:
        good, bad = ClassifyAnswer.model_validate_json(response.content).results
        assert good.predictions == direct
        assert bad.error is not None
        assert bad.error.code == "url-refused"


def test_a_deadline_is_kept_and_what_is_too_late_is_not_run(http: httpx.Client) -> None:
    image = picture(1)
    for nonsense in ("0", "-5", "1.5", "soon", "", "9" * 10):
        headers = {"x-request-timeout-ms": nonsense, "content-type": "image/png"}
        refused = http.post("/v1/classify?task=in-0", content=image, headers=headers)
        assert "whole number of milliseconds" in problem(refused, 422, "request-invalid").detail
    late = slow_request(http, {"x-request-timeout-ms": "20"})
    in_time = http.post(
        "/v1/classify?task=in-0",
        content=image,
        headers={"x-request-timeout-ms": "30000", "content-type": "image/png"},
    )

    assert in_time.status_code == 200
    if late.status_code == 200:  # some images made it
        errors = [r["error"]["code"] for r in late.json()["results"] if "error" in r]
    else:
        # With an error per image only if the body arrived in time.
        extra = problem(late, 504, "deadline-exceeded").model_extra or {}
        errors = [e["code"] for e in extra.get("errors", [{"code": "deadline-exceeded"}])]
    assert set(errors) == {"deadline-exceeded"}
    until(lambda: metric(http, "queue_images") == 0)


def test_a_client_that_disconnects_takes_its_images_out_of_the_queue(
    served: Served, http: httpx.Client
) -> None:
    before = metric(http, "images_total", result="abandoned")
    body, kind = slow_body()
    address = urlparse(served.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"POST /v1/classify?task=in-0 HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        until(lambda: metric(http, "queue_images") > 0)
    # Answering all of them would take seconds, and none of them would count as abandoned.
    until(lambda: metric(http, "queue_images") == 0)

    assert metric(http, "images_total", result="abandoned") > before
    assert classify(http, [picture(1)], ["in-0"]).status_code == 200


def test_more_than_the_queue_holds_is_refused_with_the_time_to_come_back(
    http: httpx.Client,
) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: slow_request(http, {}, (600, 400)), range(6)))
    refused = [answer for answer in answers if answer.status_code == 429]

    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        body = problem(answer, 429, "overloaded").model_extra or {}
        assert 0 < body["retry_after_s"] <= 60
    for answer in answers:
        if answer.status_code == 200:
            results = ClassifyAnswer.model_validate_json(answer.content).results
            errors = {result.error.code for result in results if result.error}
            # A machine that is busy with something else may need the whole minute there is.
            assert errors <= {"deadline-exceeded"}


def test_three_hundred_bad_files_hurt_no_good_one(http: httpx.Client) -> None:
    corpus = unusual_images()
    good = [picture(seed) for seed in range(8)]
    expected = [logits(classify(http, [image], ["in-0"]))[0][0] for image in good]
    for start in range(0, len(corpus), 30):
        mixed = [
            image
            for index, file in enumerate(corpus[start : start + 30])
            for image in (file.data, good[index % 8])
        ]
        answer = classify(http, mixed, ["in-0"])
        assert answer.status_code == 200
        results = ClassifyAnswer.model_validate_json(answer.content).results
        for index in range(0, len(mixed), 2):
            bad, neighbor = results[index], results[index + 1]
            if bad.error is not None:
                assert bad.error.code in ("image-invalid", "image-too-large")
            assert neighbor.predictions is not None
            found = {s.class_name: s.logit for s in neighbor.predictions[0].classes}
            assert found == pytest.approx(expected[index // 2 % 8], abs=LOGIT_ROUNDING)
        assert http.get("/readyz").status_code == 200
    for file in corpus[::7]:  # alone, and under a wrong name
        answer = post(http, "/v1/classify?task=in-0", file.data, "image/jpeg")
        assert answer.status_code in (200, 413, 422)


def interleavings(served: Served, backbone: Backbone, rounds: int) -> None:
    """Ask 32 images x 32 tasks at once during uploads; each answer must be as if alone."""
    rng = np.random.default_rng(0)
    images = [picture(100 + n) for n in range(32)]
    files = [to_bytes(learned_prompt(backbone, PETS[: 2 + n % 3], seed=n)) for n in range(33)]
    with httpx.Client(base_url=served.url, timeout=60) as http:
        for n in range(32):
            assert http.put(f"/v1/tasks/mix-{n}", content=files[n]).status_code < 300
        names = [f"mix-{n}" for n in range(32)]
        alone = [
            dict(zip(names, logits(classify(http, [image], names))[0], strict=True))
            for image in images
        ]
        asyncio.run(_interleave(served.url, images, alone, files, rounds, rng))
        for n in range(32):
            http.delete(f"/v1/tasks/mix-{n}")


async def _interleave(
    url: str,
    images: list[bytes],
    alone: list[dict[str, dict[str, float]]],
    files: list[bytes],
    rounds: int,
    rng: np.random.Generator,
) -> None:
    # The service closes connections after 5 s without a request, and httpx would keep them as long.
    limits = httpx.Limits(max_connections=34, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:

        async def ask(image: int, task: int) -> None:
            await asyncio.sleep(float(rng.random()) * 0.01)
            answer = await http.post(
                f"/v1/classify?task=mix-{task}",
                content=images[image],
                headers={"content-type": "image/png"},
            )
            (found,) = logits(answer)[0]
            expected = alone[image][f"mix-{task}"]
            assert max(found, key=found.__getitem__) == max(expected, key=expected.__getitem__)
            assert found == pytest.approx(expected, abs=LOGIT_ROUNDING)

        async def upload(number: int) -> None:
            # A new version of another task, and the same version of one in use.
            for name, file in (("mix-other", 32 - number % 2), (f"mix-{number % 32}", number % 32)):
                answer = await http.put(f"/v1/tasks/{name}", content=files[file])
                assert answer.status_code in (200, 201)

        for number in range(rounds):
            pairs = zip(rng.permutation(32).tolist(), rng.permutation(32).tolist(), strict=True)
            await asyncio.gather(upload(number), *(ask(*pair) for pair in pairs))
        await http.delete("/v1/tasks/mix-other")


def test_mixed_batches_answer_as_single_requests_while_tasks_are_uploaded(
    served: Served, tiny_backbone: Backbone
) -> None:
    interleavings(served, tiny_backbone, rounds=4)


@pytest.mark.long
def test_a_thousand_mixed_batches_answer_as_single_requests(
    served: Served, tiny_backbone: Backbone
) -> None:
    interleavings(served, tiny_backbone, rounds=1000)


def test_the_client_embeds_scores_and_asks_by_tag(served: Served, http: httpx.Client) -> None:
    http.put("/v1/tasks/in-1/tags", json={"tags": ["in-client"]})
    images = [picture(1), b"no image", picture(2)]
    with Client(served.url) as client:
        embeddings = client.embed(images)
        direct = client.classify(images, ["in-0", "in-1"])
        scored = client.score_embeddings(embeddings, ["in-0", "in-1"], deadline_s=30)
        by_tag = client.classify(images[0], tags="in-client")
        everything = client.classify(images[0], "*", top_k=1, deadline_s=30)
        rows = list(client.score(images, tags="in-client"))
        with pytest.raises(BackboneMismatch):
            client.score_embeddings(replace(embeddings, fingerprint="0" * 64), "in-0")
        with pytest.raises(ImageInvalid):
            client.classify(images[1], "in-0")
        (alone,) = client.classify([images[1]], "in-0")

    assert embeddings.vectors.shape == (3, client_width(http))
    assert set(embeddings.errors) == {1}
    assert np.isnan(embeddings.vectors[1]).all()
    assert [bool(result.error) for result in scored] == [False, True, False]
    for found, expected in zip(scored, direct, strict=True):
        for one, other in zip(found.predictions or [], expected.predictions or [], strict=True):
            assert [c.class_name for c in one.classes] == [c.class_name for c in other.classes]
            assert one.classes[0].logit == pytest.approx(other.classes[0].logit, abs=1e-4)
    assert [p.task for p in by_tag.predictions or []] == ["in-1"]
    assert {"in-0", "in-1", "in-2"} <= {p.task for p in everything.predictions or []}
    assert [(row.task, bool(row.error)) for row in rows] == [
        ("in-1", False), ("tag:in-client", True), ("in-1", False),
    ]  # fmt: skip
    assert alone.error is not None


def client_width(http: httpx.Client) -> int:
    return int(http.get("/v1/info").json()["backbone"]["embed_dim"])


def test_openapi_names_operations_tags_and_keys(http: httpx.Client) -> None:
    document = http.get("/v1/openapi.json").json()
    operations = [o for path in document["paths"].values() for o in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"classify", "embed", "score", "upload_task", "list_tasks", "info"} <= set(names)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)
    assert all(operation["tags"] for operation in operations)
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    assert {name for needed in document["security"] for name in needed} == set(schemes)


def test_openapi_shows_every_form_with_an_example(http: httpx.Client) -> None:
    paths = http.get("/v1/openapi.json").json()["paths"]
    for path in ("/classify", "/embed", "/score"):
        forms = paths[path]["post"]["requestBody"]["content"]
        assert {"application/json", NPY, SAFETENSORS} <= forms.keys()
        assert forms["application/json"]["example"]
    assert "multipart/form-data" in paths["/embed"]["post"]["requestBody"]["content"]
    headers = [p["name"] for p in paths["/classify"]["post"]["parameters"]]
    assert {"task", "tag", "top_k", "X-Request-Timeout-Ms"} <= set(headers)
    example = paths["/classify"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = http.post("/v1/classify", json={**example, "tasks": ["in-0"], "tags": []})
    assert answer.status_code == 200


def slow_body(size: tuple[int, int] = (1200, 800)) -> tuple[bytes, str]:
    """Return body and content type of a request with 64 images that are slow to decode."""
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(file, "PNG", compress_level=1)
    files = [("image", (f"{n}.png", file.getvalue(), "image/png")) for n in range(64)]
    request = httpx.Request("POST", "http://x", files=files)
    return request.read(), request.headers["content-type"]


def slow_request(
    http: httpx.Client, headers: dict[str, str], size: tuple[int, int] = (1200, 800)
) -> httpx.Response:
    body, kind = slow_body(size)
    return http.post(
        "/v1/classify?task=in-0",
        content=body,
        headers={"content-type": kind, **headers},
        timeout=120,
    )


def metric(http: httpx.Client, name: str, **labels: str) -> float:
    text = http.get("/metrics").text
    label = ",".join(f'{key}="{value}"' for key, value in labels.items())
    full = rf"^prompt_serve_{name}" + (rf"\{{{label}\}}" if label else "") + r" (\S+)$"
    found = re.search(full, text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)
