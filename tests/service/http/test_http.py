"""The service over HTTP, against a started ``bentoml serve``."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.encodings import LowRank
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.schemas import ClassifyAnswer, Problem, ServiceInfo, TaskInfo, TaskList
from prompt_serve.scoring import class_logits
from prompt_serve.service.inference.engine import Engine
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from tests.prompts.test_wrong_files import FILES
from tests.service.process import Served
from tests.service.prompts import bomb, learned_prompt, picture

pytestmark = pytest.mark.serve

PETS, FRUIT = ["cat", "dog", "hamster"], ["apple", "pear"]
# float32 rounding of batches of other sizes, times a logit scale of 14.
LOGIT_ROUNDING = 5e-5


@pytest.fixture(scope="module", autouse=True)
def tasks(served: Served, tiny_backbone: Backbone) -> Iterator[None]:
    for name, classes in (("pets", PETS), ("fruit", FRUIT)):
        body = to_bytes(learned_prompt(tiny_backbone, classes))
        assert httpx.put(f"{served.url}/v1/tasks/{name}", content=body).status_code in (200, 201)
    yield
    for name in ("pets", "fruit"):
        httpx.delete(f"{served.url}/v1/tasks/{name}")


def classify(
    http: httpx.Client, images: list[bytes], tasks: list[str], **fields: Any
) -> httpx.Response:
    files = [("image", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]
    return http.post("/v1/classify", files=files, data={"task": tasks, **fields})


def problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert (response.status_code, found.status, found.code) == (status, status, code), found
    return found


def test_logits_are_those_of_the_encoder_and_the_prompt(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    image = picture(1)
    response = classify(http, [image], ["pets"], top_k=3)

    answer = ClassifyAnswer.model_validate_json(response.content)
    pixels = pixels_from_bytes(image, bundle.manifest.preprocessing)
    logits = class_logits(
        engine.encode_images(pixels[np.newaxis]),
        class_features_of(learned_prompt(tiny_backbone, PETS), tiny_backbone),
        bundle.manifest.logit_scale,
    )[0]
    predictions = answer.results[0].predictions
    assert predictions is not None
    scores = predictions[0].classes
    assert [s.label for s in scores] == list(np.argsort(-logits))
    for score in scores:
        assert score.class_name == PETS[score.label]
        assert score.logit == pytest.approx(float(logits[score.label]), abs=LOGIT_ROUNDING)
    assert sum(score.probability for score in scores) == pytest.approx(1, abs=1e-5)


def test_many_images_and_tasks_answer_as_one_by_one(http: httpx.Client) -> None:
    images = [picture(seed) for seed in range(6)]
    together = ClassifyAnswer.model_validate_json(
        classify(http, images, ["fruit", "pets"], top_k=9).content
    )

    for index, image in enumerate(images):
        result = together.results[index]
        assert (result.index, result.filename) == (index, f"{index}.png")
        assert result.predictions is not None
        for prediction in result.predictions:
            alone = classify(http, [image], [prediction.task], top_k=9).json()
            expected = {
                s["label"]: s["logit"] for s in alone["results"][0]["predictions"][0]["classes"]
            }
            got = {s.label: s.logit for s in prediction.classes}
            assert got == pytest.approx(expected, abs=LOGIT_ROUNDING)
        assert [p.task for p in result.predictions] == ["fruit", "pets"]


def test_an_image_as_the_body_gives_what_multipart_gives(http: httpx.Client) -> None:
    image = picture(2)
    raw = http.post(
        "/v1/classify",
        params={"task": ["pets", "fruit"], "top_k": 2},
        content=image,
        headers={"content-type": "image/png"},
    ).json()
    multipart = classify(http, [image], ["pets", "fruit"], top_k=2).json()

    del multipart["results"][0]["filename"]
    assert raw == multipart


def test_bentos_own_client_gets_the_same_answer(served: Served, http: httpx.Client) -> None:
    ours = classify(http, [picture(2)], ["pets"]).json()
    # In a process of its own: bentoml's client warns of what pydantic and pathspec deprecated.
    script = """
import bentoml, json, sys
url, image = sys.argv[1:]
with bentoml.SyncHTTPClient(url) as client:
    print(json.dumps(client.classify(images=[image], tasks=["pets"], top_k=5)))
"""
    image = base64.b64encode(picture(2)).decode()
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, served.url, image],
        check=True,
        capture_output=True,
        text=True,
    )

    assert json.loads(ran.stdout)["results"][0]["predictions"] == ours["results"][0]["predictions"]


def test_bentos_own_endpoint_answers_alike_and_names_errors(http: httpx.Client) -> None:
    image = base64.b64encode(picture(2)).decode()
    ours = classify(http, [picture(2)], ["pets"]).json()
    theirs = http.post("/classify", json={"images": [image], "tasks": ["pets"]}).json()
    bad = http.post("/classify", json={"images": ["AAAA"], "tasks": ["pets"]})
    unknown = http.post("/classify", json={"images": [image], "tasks": ["pet"]})

    assert theirs["results"][0]["predictions"] == ours["results"][0]["predictions"]
    assert bad.status_code == 422
    assert "image-invalid" in bad.text
    assert unknown.status_code == 404
    assert "Did you mean 'pets'?" in unknown.text


def test_bad_images_fail_alone_and_all_bad_ones_fail_the_request(http: httpx.Client) -> None:
    good, cut, fake = picture(3), picture(3, size=(300, 300))[:-200], b"GIF89a" + b"x" * 50
    mixed = ClassifyAnswer.model_validate_json(
        classify(http, [cut, good, b"", fake, good, bomb()], ["pets"]).content
    )
    codes = [result.error.code if result.error else None for result in mixed.results]

    assert codes == [
        "image-invalid",
        None,
        "image-invalid",
        "image-invalid",
        None,
        "image-too-large",
    ]
    assert mixed.results[1].predictions == mixed.results[4].predictions
    none = problem(classify(http, [fake, bomb()], ["pets"]), 422, "image-invalid")
    errors = none.model_extra
    assert errors is not None
    assert [error["code"] for error in errors["errors"]] == ["image-invalid", "image-too-large"]
    too_large = problem(classify(http, [bomb()], ["pets"]), 413, "image-too-large")
    assert "144,000,000 pixels" in too_large.detail


def test_invalid_requests_get_the_reason(http: httpx.Client) -> None:
    image = picture()
    png = {"content-type": "image/png"}
    missing = problem(classify(http, [image], ["pet"]), 404, "task-not-found")
    assert missing.detail == "No task named 'pet' is loaded. Did you mean 'pets'?"

    invalid = [
        classify(http, [image], []),
        classify(http, [image], ["pets"], top_k="five"),
        classify(http, [image], ["pets"], top_k=0),
        classify(http, [image], ["pets"], topk=3),
        http.post("/v1/classify", data={"task": "pets", "image": "x"}),
        http.post("/v1/classify", files={"task": b"pets"}),
        http.post("/v1/classify", json={"task": "pets"}),
        http.post("/v1/classify?task=pets&top=3", content=image, headers=png),
        http.post("/v1/classify?task=pets", content=b"", headers=png),
        http.post(
            "/v1/classify",
            content=b"nothing of the kind",
            headers={"content-type": "multipart/form-data; boundary=x"},
        ),
        http.post("/v1/classify", content=b"x", headers={"content-type": "multipart/form-data"}),
    ]
    for response in invalid:
        problem(response, 422, response.json()["code"])
    problem(http.get("/v1/nonsense"), 404, "not-found")
    problem(http.post("/v1/info"), 405, "method-not-allowed")
    problem(http.get("/v1/tasks?limit=0"), 422, "request-invalid")
    problem(http.post("/v1/tasks", json={"name": "x"}), 422, "request-invalid")


def test_limits_hold(http: httpx.Client) -> None:
    image = picture()
    limits = ServiceInfo.model_validate_json(http.get("/v1/info").content).limits
    too_many = [
        classify(http, [image] * (limits.max_images + 1), ["pets"]),
        classify(http, [image], ["pets"] * (limits.max_tasks + 1)),
        classify(http, [image] * 64, ["pets"] * 100, top_k=1000),
    ]
    for response in too_many:
        problem(response, 413, "request-too-large")
    assert classify(http, [image] * limits.max_images, ["pets"]).status_code == 200


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "streamed"])
def test_a_body_over_the_limit_is_refused(http: httpx.Client, announced: bool) -> None:
    limit = ServiceInfo.model_validate_json(http.get("/v1/info").content).limits.max_body_bytes
    chunk = b"\x00" * 2**20
    body = b"\x00" * (limit + 1) if announced else (chunk for _ in range(limit // 2**20 + 1))
    response = http.put("/v1/tasks/huge", content=body)

    found = problem(response, 413, "request-too-large")
    assert (found.model_extra or {})["max_body_bytes"] == limit
    problem(http.get("/v1/tasks/huge"), 404, "task-not-found")


def test_bad_prompt_files_are_refused_by_name_and_the_old_one_stays(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    good = learned_prompt(tiny_backbone, PETS)
    other = good.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    data = to_bytes(good)
    assert isinstance(good.text, LowRank)
    assert isinstance(good.text.p_a, np.ndarray)
    start = data.index(good.text.p_a.tobytes())
    nan = data[:start] + b"\x00\x7e" + data[start + 2 :]
    refused = {
        "prompt-file-invalid": [data[:-4], data[:100], b"", b"\xff" * 500, nan],
        "backbone-mismatch": [to_bytes(replace(good, backbone=other))],
        "probe-mismatch": [to_bytes(replace(good, class_names=("dog", "cat", "hamster")))],
        "prompt-too-long": [to_bytes(replace(good, class_names=("cat", "dog", "ab " * 60)))],
    }

    for code, files in refused.items():
        for file in files:
            problem(http.put("/v1/tasks/pets", content=file), 422, code)
    problem(http.put("/v1/tasks/.pets", content=data), 422, "task-name-invalid")

    info = TaskInfo.model_validate_json(http.get("/v1/tasks/pets").content)
    assert info.version == version_of(data)


def test_a_task_lives_from_upload_to_delete(http: httpx.Client, tiny_backbone: Backbone) -> None:
    data = to_bytes(learned_prompt(tiny_backbone, ["red", "green"], dense=True))
    created = http.put("/v1/tasks/life", content=data)
    same = http.put("/v1/tasks/life", content=data)
    file = http.get("/v1/tasks/life/file")
    unchanged = http.get("/v1/tasks/life/file", headers={"if-none-match": file.headers["etag"]})

    info = TaskInfo.model_validate_json(created.content)
    assert (created.status_code, same.status_code) == (201, 200)
    assert file.content == data
    assert file.headers["etag"] == f'"{info.version}"'
    assert unchanged.status_code == 304
    assert (info.n_classes, info.size_bytes, info.method) == (2, len(data), "coop")
    assert http.delete("/v1/tasks/life").status_code == 204
    for response in (
        http.get("/v1/tasks/life"),
        http.get("/v1/tasks/life/file"),
        http.delete("/v1/tasks/life"),
        classify(http, [picture()], ["life"]),
    ):
        problem(response, 404, "task-not-found")


def test_zero_shot_tasks_need_no_training(http: httpx.Client) -> None:
    body = {"name": "zero", "class_names": ["a", "b"], "templates": ["a photo of a {}."]}
    created = http.post("/v1/tasks", json=body)
    again = http.post("/v1/tasks", json=body)
    twice = http.post("/v1/tasks", json={**body, "class_names": ["a", "a"]})
    answer = classify(http, [picture()], ["zero"]).json()

    alike = http.post("/v1/tasks", json={**body, "class_names": ["A", "a"]})

    assert (created.status_code, again.status_code) == (201, 200)
    assert created.json()["notes"] == []
    assert "'A' = 'a'" in alike.json()["notes"][0]
    problem(twice, 422, "prompt-file-invalid")
    predicted = answer["results"][0]["predictions"][0]
    assert predicted["version"] == created.json()["version"]
    http.delete("/v1/tasks/zero")


def test_tasks_are_listed_in_pages(http: httpx.Client, tiny_backbone: Backbone) -> None:
    data = to_bytes(learned_prompt(tiny_backbone, ["one"]))
    names = [f"page-{i}" for i in range(5)]
    for name in names:
        http.put(f"/v1/tasks/{name}", content=data)

    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        response = http.get("/v1/tasks", params={"limit": 2, "cursor": cursor})
        page = TaskList.model_validate_json(response.content)
        seen += [task.name for task in page.tasks]
        cursor = page.next
    assert seen == sorted(seen)
    assert set(names) <= set(seen)
    for name in names:
        http.delete(f"/v1/tasks/{name}")


def test_openapi_documents_every_route_and_both_bodies(http: httpx.Client) -> None:
    document = http.get("/v1/openapi.json").json()

    assert "openapi.json" in http.get("/v1/docs").text
    bodies = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/*"} <= bodies.keys()
    assert {"get", "put", "delete"} <= document["paths"]["/tasks/{name}"].keys()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', http.get("/v1/openapi.json").text))
    assert references <= document["components"]["schemas"].keys()


def test_garbage_never_brings_a_5xx(http: httpx.Client, rng: np.random.Generator) -> None:
    image, prompt = picture(4, size=(64, 64), kind="JPEG"), http.get("/v1/tasks/pets/file").content
    worst = 0
    for _ in range(60):
        for url, data in (("/v1/classify?task=pets", image), ("/v1/tasks/fuzz", prompt)):
            method = "POST" if "classify" in url else "PUT"
            response = http.request(
                method, url, content=_damaged(data, rng), headers={"content-type": "image/jpeg"}
            )
            worst = max(worst, response.status_code)
    for garbage in (b"\x00", b"{" * 5000, rng.bytes(2000)):
        for kind in ("application/json", "multipart/form-data; boundary=a", "image/png", ""):
            for method, path in (
                ("POST", "/v1/classify"), ("POST", "/v1/tasks"), ("PUT", "/v1/tasks/fuzz"),
                ("GET", "/v1/tasks?cursor=%00%ff"), ("DELETE", "/v1/tasks/%00"),
            ):  # fmt: skip
                response = http.request(
                    method, path, content=garbage, headers={"content-type": kind}
                )
                worst = max(worst, response.status_code)
    http.delete("/v1/tasks/fuzz")

    assert worst < 500
    assert http.get("/readyz").status_code == 200


def test_probes_and_info_describe_the_service(http: httpx.Client, bundle: Bundle) -> None:
    info = ServiceInfo.model_validate_json(http.get("/v1/info").content)

    assert http.get("/livez").status_code == 200
    assert http.get("/readyz").status_code == 200
    assert info.provider == "CPUExecutionProvider"
    assert info.backbone == bundle.manifest.backbone
    assert info.tasks >= 2
    assert info.revision >= 2


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes, and remove or insert a piece."""
    spoiled = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 20)):
        spoiled[place] = int(rng.integers(256))
    cut = int(rng.integers(len(data)))
    return bytes([*spoiled[:cut], *rng.bytes(int(rng.integers(20))), *spoiled[cut + 3 :]])


@pytest.mark.parametrize("kind", ["LFS pointer", "HTML", "OpenAI's tensors", "torch.save", "ONNX"])
def test_a_wrong_upload_is_told_by_its_name(kind: str, http: httpx.Client) -> None:
    make, message = FILES[kind]

    response = http.put("/v1/tasks/wrong", content=make())

    assert (response.status_code, response.json()["code"]) == (422, "prompt-file-invalid")
    assert re.search(message, response.json()["detail"])
    assert http.get("/v1/tasks/wrong").status_code == 404


def test_a_checkpoint_beyond_the_limit_is_told_as_such(http: httpx.Client) -> None:
    response = http.put("/v1/tasks/wrong", content=bytes(40 * 2**20))

    assert response.status_code == 413
    assert "prompt-serve export" in response.json()["detail"]
