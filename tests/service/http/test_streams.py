"""More tasks than a JSON answer holds: NDJSON, ``top_tasks``, the client and the commands."""

import asyncio
import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from prompt_serve.bundle import Bundle
from prompt_serve.cli.main import main
from prompt_serve.client import AsyncClient, Client
from prompt_serve.errors import ImageInvalid, TaskNotFound
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.schemas import ClassifyAnswer, ImageLine, LastLine, TaskPrediction
from prompt_serve.service.http.ndjson import NDJSON
from prompt_serve.service.http.tensor_bodies import NPY
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.training.clip.backbone import Backbone
from tests.backbones import EMBED_DIM
from tests.docs.pages import blocks_of
from tests.service.http.test_http import problem
from tests.service.http.test_requests import LOGIT_ROUNDING, in_json, metric, npy, until
from tests.service.many_tasks import many_tasks
from tests.service.process import ROOT, Served, service
from tests.service.prompts import learned_prompt, picture

pytestmark = pytest.mark.serve

N_TASKS = 300
NAMES = [f"many-{n:04}" for n in range(N_TASKS)]
ACCEPT = {"accept": NDJSON}


@pytest.fixture(scope="module", autouse=True)
def tasks(served: Served, bundle: Bundle) -> Iterator[None]:
    with many_tasks(served.url, bundle.manifest, NAMES):
        yield


@pytest.fixture(scope="module")
def one_by_one(served: Served, tasks: None) -> list[TaskPrediction]:
    """Predictions of every tenth task for the first picture, from requests of one task."""
    with httpx.Client(base_url=served.url, timeout=60) as http:
        return [asked(http, [picture(0)], [name])[0][0] for name in NAMES[::10]]


def asked(http: httpx.Client, images: list[bytes], tasks: list[str]) -> list[list[TaskPrediction]]:
    """Predictions of a JSON answer."""
    response = http.post("/v1/classify", json={"images": in_json(*images), "tasks": tasks})
    answer = ClassifyAnswer.model_validate_json(response.raise_for_status().content)
    return [result.predictions or [] for result in answer.results]


def read(response: httpx.Response) -> tuple[list[ImageLine], LastLine]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NDJSON
    *lines, last = response.text.splitlines()
    return [*map(ImageLine.model_validate_json, lines)], LastLine.model_validate_json(last)


def same(found: TaskPrediction, expected: TaskPrediction) -> None:
    """The same but for the rounding of batches of other sizes."""
    scores = {c.class_name: c.logit for c in found.classes}
    assert scores == pytest.approx(
        {c.class_name: c.logit for c in expected.classes}, abs=LOGIT_ROUNDING
    )
    fields = {"task", "version", "unknown", "labels"}
    assert found.model_dump(include=fields) == expected.model_dump(include=fields)


def test_lines_of_all_tasks_are_the_answers_of_single_requests(
    http: httpx.Client, one_by_one: list[TaskPrediction]
) -> None:
    image = {"content-type": "image/png"}
    lines, last = read(
        http.post("/v1/classify?task=*", content=picture(0), headers={**image, **ACCEPT})
    )

    found = {line.prediction.task: line.prediction for line in lines if line.prediction}
    assert [*found] == sorted(found)
    assert set(NAMES) <= found.keys()
    assert len(lines) == len(found)
    assert (last.complete, last.tasks, last.problem) == (True, len(found), None)
    for expected in one_by_one:
        same(found[expected.task], expected)


def test_every_form_of_a_request_is_answered_line_by_line(
    http: httpx.Client, one_by_one: list[TaskPrediction], bundle: Bundle
) -> None:
    images = [picture(0), b"no image", picture(1)]
    files = [("image", (f"{i}.png", data)) for i, data in enumerate(images)]
    embedded = http.post("/v1/embed", json={"images": in_json(picture(0), picture(1))})
    rows = [result["embedding"] for result in embedded.json()["results"]]
    two = np.asarray([rows[0], [0] * len(rows[0]), rows[1]], np.float32)
    named = {"task": NAMES, "top_k": 3}
    in_body = {"tasks": NAMES, "top_k": 3}
    forms = {
        "multipart": http.post("/v1/classify", files=files, data=named, headers=ACCEPT),
        "base64": http.post(
            "/v1/classify", json={"images": in_json(*images), **in_body}, headers=ACCEPT
        ),
        "embeddings": http.post(
            "/v1/score", json={"embeddings": two.tolist(), **in_body}, headers=ACCEPT
        ),
        "npy": http.post(
            "/v1/score?task=*&top_k=3", content=npy(two), headers={"content-type": NPY, **ACCEPT}
        ),
    }
    for form, response in forms.items():
        (error, *lines), last = read(response)
        assert error.index == 1, form
        assert error.error is not None
        assert error.error.code == "image-invalid"
        assert last.complete
        found = {
            (line.index, line.prediction.task): line.prediction for line in lines if line.prediction
        }
        assert len(found) == len(lines) == 2 * (last.tasks or 0)
        assert {index for index, _ in found} == {0, 2}
        for expected in one_by_one:
            same(found[0, expected.task], cut_to(expected, 3))
        if form == "multipart":
            assert {line.filename for line in lines} == {"0.png", "2.png"}


def cut_to(prediction: TaskPrediction, k: int) -> TaskPrediction:
    return prediction.model_copy(update={"classes": prediction.classes[:k]})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (NDJSON, NDJSON),
        ("Application/X-NDJSON; q=0.9, */*", NDJSON),
        (f"text/html, {NDJSON}", NDJSON),
        ("*/*", "application/json"),
        (f"application/json, {NDJSON}", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/score"])
def test_lines_are_sent_to_those_who_accept_them_first(
    http: httpx.Client, path: str, accept: str, kind: str
) -> None:
    body = (
        {"images": in_json(picture(0))}
        if "classify" in path
        else {"embeddings": [[1.0] * EMBED_DIM]}
    )
    answer = http.post(path, json={**body, "tasks": NAMES[:2]}, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize("selected", [{"tasks": ["*"]}, {"tasks": NAMES}])
def test_json_over_the_limit_names_both_ways_out(
    http: httpx.Client, selected: dict[str, Any]
) -> None:
    refused = problem(
        http.post("/v1/classify", json={"images": in_json(picture(0)), **selected}),
        413,
        "request-too-large",
    )
    assert "top_tasks=K" in refused.detail
    assert f"Accept: {NDJSON}" in refused.detail


@pytest.mark.parametrize("k", [1, 3, 50, 256])
def test_top_tasks_are_the_best_of_all(http: httpx.Client, k: int) -> None:
    images = [picture(seed) for seed in range(3)]
    body = {"images": in_json(*images), "tasks": NAMES, "top_k": 2}
    lines, _ = read(http.post("/v1/classify", json=body, headers=ACCEPT))
    best = http.post("/v1/classify", json={**body, "top_tasks": k})
    as_lines, last = read(http.post(f"/v1/classify?top_tasks={k}", json=body, headers=ACCEPT))

    for result in ClassifyAnswer.model_validate_json(best.content).results:
        found = [line.prediction for line in lines if line.index == result.index]
        everything = [prediction for prediction in found if prediction]
        # The ranking of the documents: known before unknown, then by probability, then by name.
        ranked = sorted(everything, key=lambda p: (p.unknown, -p.classes[0].probability, p.task))
        assert result.predictions == ranked[:k]
        assert [p.prediction for p in as_lines if p.index == result.index] == ranked[:k]
        assert any(p.unknown for p in everything)
        assert ranked[-1].unknown
    assert last.complete


def test_top_tasks_are_asked_in_every_form(http: httpx.Client) -> None:
    image, selected = picture(0), {"tasks": ["*"], "top_tasks": 2}
    embedded = http.post("/v1/embed", json={"images": in_json(image)}).json()["results"]
    files = {"image": image}
    answers = [
        http.post("/v1/classify", json={"images": in_json(image), **selected}),
        http.post("/v1/classify", files=files, data={"task": "*", "top_tasks": "2"}),
        http.post("/v1/classify?task=*&top_tasks=2", files=files),
        http.post("/v1/classify?top_tasks=9", files=files, data={"task": "*", "top_tasks": "2"}),
        http.post("/v1/score", json={"embeddings": [embedded[0]["embedding"]], **selected}),
        http.post("/v1/score?top_tasks=2&task=*", json={"embeddings": [embedded[0]["embedding"]]}),
    ]
    chosen = [
        [p["task"] for p in answer.raise_for_status().json()["results"][0]["predictions"]]
        for answer in answers
    ]
    assert chosen == [chosen[0]] * len(answers)
    assert len(chosen[0]) == 2


@pytest.mark.parametrize(
    ("top_tasks", "status"), [("0", 422), ("-1", 422), ("x", 422), ("", 422), ("257", 413)]
)
def test_a_number_of_top_tasks_that_cannot_be_is_refused(
    http: httpx.Client, top_tasks: str, status: int
) -> None:
    code = {422: "request-invalid", 413: "request-too-large"}[status]
    query = {"task": "*", "top_tasks": top_tasks}
    answer = http.post("/v1/classify", params=query, files={"image": picture(0)})
    assert "top_tasks" in problem(answer, status, code).detail


@pytest.mark.parametrize(
    ("image", "query", "status", "code"),
    [
        (picture(0), {"task": [*NAMES, "many-none"]}, 404, "task-not-found"),
        (picture(0), {"tag": ["nowhere"]}, 404, "task-not-found"),
        (picture(0), {}, 422, "request-invalid"),
        (picture(0), {"task": "*", "top_k": 0}, 422, "request-invalid"),
        (picture(0), {"task": "*", "top_k": 10**7}, 413, "request-too-large"),
        (b"no image", {"task": "*"}, 422, "image-invalid"),
    ],
)
def test_what_is_wrong_from_the_start_has_its_own_status(
    http: httpx.Client, image: bytes, query: dict[str, Any], status: int, code: str
) -> None:
    headers = {"content-type": "image/png", **ACCEPT}
    problem(http.post("/v1/classify", params=query, content=image, headers=headers), status, code)


def test_too_many_names_are_refused(http: httpx.Client) -> None:
    limit = http.get("/v1/info").json()["limits"]["max_streamed_tasks"]
    body = {"images": in_json(picture(0)), "tasks": NAMES[:1] * (limit + 1)}
    for more in ({}, {"top_tasks": 3}):
        answer = http.post("/v1/classify", json={**body, **more}, headers=ACCEPT)
        assert "*" in problem(answer, 413, "request-too-large").detail


@pytest.mark.parametrize("place", [0, 1, 100, 200, 300])
def test_a_failure_in_the_middle_is_the_last_line(
    served: Served, http: httpx.Client, tiny_backbone: Backbone, place: int
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    other = prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    foreign = replace(prompt, backbone=other)
    new = NewTask(name="many-other", data=to_bytes(foreign), prompt=foreign, features=None)
    with closing(Database(f"sqlite:///{served.home / 'registry.db'}")) as database:
        Registry(database).put(new)
    names = [*NAMES[:place], "many-other", *NAMES[place:]]
    body = {"images": in_json(picture(0)), "tasks": names, "top_k": 1}
    try:
        lines, last = read(http.post("/v1/classify", json=body, headers=ACCEPT))
        best = http.post("/v1/classify", json={**body, "top_tasks": 3})
    finally:
        http.delete("/v1/tasks/many-other").raise_for_status()

    assert not last.complete
    assert last.problem is not None
    assert (last.problem.status, last.problem.code) == (422, "backbone-mismatch")
    assert last.problem.model_extra
    assert last.problem.model_extra["request_id"]
    # Lines of whole chunks before it, in order.
    assert [line.prediction and line.prediction.task for line in lines] == names[: len(lines)]
    assert place - 64 <= len(lines) <= place
    problem(best, 422, "backbone-mismatch")


def test_one_answer_has_one_version_of_each_task_while_tasks_change(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    files = [to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=s)) for s in range(4)]
    changed = [f"many-{n:04}-changed" for n in range(0, N_TASKS, 60)]
    for name in changed:
        http.put(f"/v1/tasks/{name}", content=files[0]).raise_for_status()
    body = {"images": in_json(*(picture(seed) for seed in range(16))), "tasks": ["*"]}
    try:
        with http.stream("POST", "/v1/classify", json=body, headers=ACCEPT) as response:
            parts = []
            for turn, part in enumerate(response.iter_bytes()):
                parts.append(part)
                name = changed[turn % len(changed)]
                with httpx.Client(base_url=str(http.base_url)) as other:
                    other.put(f"/v1/tasks/{name}", content=files[turn % 4]).raise_for_status()
        *lines, last = b"".join(parts).splitlines()
    finally:
        for name in changed:
            http.delete(f"/v1/tasks/{name}")

    versions: dict[str, set[str]] = {}
    for line in lines:
        prediction = json.loads(line)["prediction"]
        versions.setdefault(prediction["task"], set()).add(prediction["version"])
    assert set(changed) <= versions.keys()
    assert {len(found) for found in versions.values()} == {1}
    assert json.loads(last)["complete"]


def test_work_stops_when_the_client_hangs_up(served: Served, http: httpx.Client) -> None:
    body = json.dumps(
        {"images": in_json(*(picture(seed) for seed in range(64))), "tasks": NAMES, "top_k": 9}
    ).encode()
    n_chunks = N_TASKS / (2000 // (64 * 9))
    before = metric(http, "score_seconds_count")
    address = urlparse(served.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: {NDJSON}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        received = b""
        while b'"task"' not in received:
            received += connection.recv(1000)
    assert received.startswith(b"HTTP/1.1 200")
    until(lambda: metric(http, "requests_in_progress") == 1)  # this one

    assert 1 <= metric(http, "score_seconds_count") - before < n_chunks / 2


# The client


def test_the_client_reads_any_number_of_tasks(
    served: Served, http: httpx.Client, one_by_one: list[TaskPrediction]
) -> None:
    http.put(f"/v1/tasks/{NAMES[7]}/tags", json={"tags": ["many-tagged"]}).raise_for_status()

    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(served.url) as client:
            return (
                await client.classify(picture(0), "*"),
                await client.classify(picture(0), "*", top_tasks=3),
                [row async for row in client.score([picture(0)], "*", top_k=5)],
            )

    with Client(served.url) as client:
        alone = client.classify(picture(0), "*")
        listed = client.classify([picture(0), b"no image", picture(1)], NAMES)
        best = client.classify(picture(0), "*", top_tasks=3)
        scored = client.score_embeddings(client.embed([picture(0), picture(1)]), "*")
        tagged = client.classify(picture(0), tags="many-tagged")
        rows = list(client.score([picture(0), b"no image"], NAMES))
        with pytest.raises(ImageInvalid):
            client.classify(b"no image", "*")
        with pytest.raises(TaskNotFound, match="many-none"):
            client.classify(picture(0), [*NAMES, "many-none"])
    in_async, best_in_async, rows_in_async = asyncio.run(ask())

    for result in (alone, listed[0], scored[0], in_async):
        found = {prediction.task: prediction for prediction in result.predictions or []}
        assert set(NAMES) <= found.keys()
        for expected in one_by_one:
            same(found[expected.task], expected)
    assert [result.index for result in listed] == [0, 1, 2]
    assert listed[1].error is not None
    assert len(listed[2].predictions or []) == N_TASKS
    assert best.predictions == best_in_async.predictions
    assert len(best.predictions or []) == 3
    assert [p.task for p in tagged.predictions or []] == [NAMES[7]]
    assert [row.task for row in rows] == 2 * NAMES
    assert [row.error is None for row in rows] == [True] * N_TASKS + [False] * N_TASKS
    assert [row.task for row in rows_in_async] == [p.task for p in in_async.predictions or []]


# The commands


def run(served: Served, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--url", served.url])


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def test_the_commands_take_all_tasks(
    served: Served, one_by_one: list[TaskPrediction], tmp_path: Path
) -> None:
    image, bad = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes(picture(0))
    everything = run(served, "classify", image, "--task", "*", "--json")
    best = run(served, "classify", image, "--task", "*", "--top-tasks", 2, "--top-k", 1)

    predictions = json.loads(everything.stdout)["predictions"]
    found = {p["task"]: TaskPrediction.model_validate(p) for p in predictions}
    for expected in one_by_one:
        same(found[expected.task], expected)
    assert best.exit_code == 0, best.output
    assert len(best.stdout.splitlines()) == 4

    bad.write_bytes(b"no image")
    table = tmp_path / "scores.csv"
    scored = run(served, "score", tmp_path, "--task", "*", "-o", table, "--no-progress")
    assert scored.exit_code == 0, scored.output
    rows = rows_of(table)
    assert {row["task"] for row in rows if row["source"] == str(image)} == found.keys()
    assert len(rows) == 2 * len(found)
    again = run(served, "score", tmp_path, "--task", "*", "-o", table, "--resume", "--no-progress")
    assert f"Retrying {len(found)} failed rows" in again.stdout
    assert len(rows_of(table)) == len(rows)


def test_a_table_of_the_best_tasks_is_resumed(served: Served, tmp_path: Path) -> None:
    for seed in range(5):
        (tmp_path / f"{seed}.png").write_bytes(picture(seed))
    (tmp_path / "bad.png").write_bytes(b"no image")
    table = tmp_path / "best.csv"
    command = ("score", tmp_path, "--task", "*", "--top-tasks", 3, "-o", table, "--no-progress")

    assert run(served, *command).exit_code == 0
    whole = table.read_text().splitlines()
    assert len(whole) == 1 + 5 * 3 + 1
    table.write_text("\n".join(whole[:9]) + "\n")  # two images, and two rows of the third
    (tmp_path / "bad.png").write_bytes(picture(9))
    resumed = run(served, *command, "--resume")

    assert "Skipped 2 of 6 images" in resumed.stdout
    rows = table.read_text().splitlines()
    assert rows[:16] == whole[:16]
    assert len(rows) == 1 + 6 * 3


# The documents


def walk(served: Served, n_tasks: int, folder: Path) -> None:
    """Run every block of the how-to, with all tasks of a service."""
    with httpx.Client(base_url=served.url, timeout=60) as http:
        for name in ("pets", "colors"):
            body = {"name": name, "class_names": ["red", "green"]}
            http.post("/v1/tasks", json=body).raise_for_status()
        http.put("/v1/tasks/pets/tags", json={"tags": ["season"]}).raise_for_status()
        version = http.get("/v1/tasks/pets").json()["version"]
        n_all = http.get("/v1/info").json()["tasks"]
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "photos/cat.jpg", "photos/dog.jpg"):
        (folder / name).write_bytes(picture(0, kind="JPEG"))
    outputs = []
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PROMPT_SERVE_URL": served.url,
    }
    for block in blocks_of(ROOT / "docs" / "how-to" / "many-tasks.md"):
        text = block.text.replace("http://localhost:3000", served.url)
        text = text.replace("localhost:3000", served.url).replace(
            "pets@74c8bf69", f"pets@{version}"
        )
        runner = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
        done = subprocess.run(
            [*runner, text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"line {block.line}: {done.stdout}{done.stderr}"
        outputs.append(done.stdout)
    assert n_all >= n_tasks
    printed = "".join(outputs)
    assert printed.count("photo.jpg  pets") >= 2
    (last,) = [json.loads(line) for line in printed.splitlines() if "complete" in line]
    assert (last["complete"], last["tasks"]) == (True, n_all)
    assert f"{n_all} predictions" in printed
    rows = rows_of(folder / "scores.csv")
    assert len(rows) == 2 * n_all


def test_the_blocks_of_the_how_to_run_with_all_tasks(
    served: Served, http: httpx.Client, tmp_path: Path
) -> None:
    try:
        walk(served, N_TASKS, tmp_path)
    finally:
        for name in ("pets", "colors"):
            http.delete(f"/v1/tasks/{name}")


@pytest.mark.long
def test_the_blocks_of_the_how_to_run_with_five_thousand_tasks(
    bundle: Bundle, tiny_bundle: Path, tmp_path: Path
) -> None:
    names = [f"many-{n:04}" for n in range(5000)]
    with (
        service(tmp_path / "home", tiny_bundle) as served,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(many_tasks(served.url, bundle.manifest, names))
        started = time.monotonic()
        walk(served, len(names), tmp_path)
        print(f"all blocks: {time.monotonic() - started:.1f} s")
        stack.pop_all()  # the service ends with its tasks
