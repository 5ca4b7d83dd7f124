"""Every method with a fixed prompt, from the command line to the answer, mixed in one request."""

import itertools
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from prompt_serve.bundle import Bundle, open_bundle, shipped_bundle
from prompt_serve.cli.main import main
from prompt_serve.engines.encoders import Encoders
from prompt_serve.prompts.class_features import folded_image
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, version_of
from prompt_serve.schemas import ClassifyAnswer, ImageLine, TaskPrediction
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.methods import METHODS
from prompt_serve.training.select_tokens import TOKENS
from prompt_serve.types import FloatArray
from tests.drawings import COLORS, draw_dataset
from tests.service.one_task import LOGIT_ROUNDING, check, logits_of
from tests.service.process import Served, service
from tests.service.prompts import picture

pytestmark = [pytest.mark.serve, pytest.mark.slow, pytest.mark.long]

IMAGES = [picture(seed) for seed in range(3)]
# Options by task. Few steps: the vectors are to move away from where they start, not to be good.
BRIEF = ("--views", "0", "--epochs", "3", "--min-steps", "0", "--learning-rate", "0.05")
TASKS: dict[str, tuple[str, ...]] = {
    "zero-shot": (),
    "class-vectors": ("--method", "class-vectors"),
    "class-vectors-1-bit": ("--method", "class-vectors", "--bits", "1"),
    "coop": BRIEF,
    "dip": BRIEF,
    "qcoop": BRIEF,
    "kgcoop": BRIEF,
    "prograd": BRIEF,
    "promptsrc": BRIEF,
    "dip-alg1": BRIEF,
    "dip-alg2": BRIEF,
    "vpt": BRIEF,
    "vpt-shallow": ("--method", "vpt", "--depth", "1", *BRIEF),
    "vpt-2-bits": ("--method", "vpt", "--depth", "2", "--bits", "2", *BRIEF),
    "ivlp": BRIEF,
    "maple": BRIEF,
    "dip-maple": BRIEF,
    "qmaple": BRIEF,
    "dip-image": ("--method", "dip", "--branch", "image", *BRIEF),
    "adapt": ("--tokens", "64", *BRIEF),
    "adapt-l2": ("--method", "adapt", "--tokens", "32", "--prune-score", "l2", *BRIEF),
    "adapt-auto": ("--method", "adapt", "--tokens", "auto", *BRIEF),
}
NOT_SERVED = {"cocoop"}  # it has other class features for every image

CLIENTS = 16
LOAD_SECONDS = 60.0


@dataclass(frozen=True)
class Learned:
    """Prompt file of a task, what it contains, and the logits (C,) of each image in PyTorch."""

    data: bytes
    prompt: Prompt
    logits: list[FloatArray]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("embedded-vit")


@pytest.fixture(scope="module")
def vit() -> Bundle:
    return open_bundle(shipped_bundle("embedded-vit"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prompt file of every task, learned from three images per class."""
    folder = tmp_path_factory.mktemp("learned")
    photos = draw_dataset(folder / "photos", train=4, test=1)
    shared = ("--backbone", "embedded-vit", "--cache", folder / "cache", "--quiet")
    paths = {task: folder / f"{task}.safetensors" for task in TASKS}
    for task, options in TASKS.items():
        method = () if "--method" in options else ("--method", task)
        shots = () if "class-vectors" in task else ("--shots", 3)
        run("train", photos, "--out", paths[task], *shared, *shots, *method, *options)
    return paths


@pytest.fixture(scope="module")
def learned(files: dict[str, Path], vit: Bundle, backbone: Backbone) -> dict[str, Learned]:
    found = {}
    for task, path in files.items():
        data = path.read_bytes()
        prompt = from_bytes(data)
        logits = [logits_of(prompt, image, vit, backbone) for image in IMAGES]
        found[task] = Learned(data, prompt, logits)
    return found


@pytest.fixture(scope="module")
def served_vit(
    learned: dict[str, Learned], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A service of its own with every task."""
    home = tmp_path_factory.mktemp("vit")
    with service(home, shipped_bundle("embedded-vit")) as running:
        for task, one in learned.items():
            upload(running.url, task, one.data)
        yield running


def upload(url: str, task: str, data: bytes) -> None:
    httpx.put(f"{url}/v1/tasks/{task}", content=data, timeout=60).raise_for_status()


def test_every_method_is_here() -> None:
    methods = {TASKS[task][1] if "--method" in TASKS[task] else task for task in TASKS}

    assert methods == METHODS.keys() - NOT_SERVED


def test_one_request_has_the_answers_of_every_task_alone(
    served_vit: Served, learned: dict[str, Learned]
) -> None:
    files = [("image", (f"{index}.png", image)) for index, image in enumerate(IMAGES)]

    response = httpx.post(
        f"{served_vit.url}/v1/classify",
        files=files,
        data={"task": [*learned], "top_k": str(len(COLORS))},
        timeout=60,
    )

    for index, result in enumerate(ClassifyAnswer.model_validate_json(response.content).results):
        predictions = result.predictions or []
        assert [found.task for found in predictions] == [*learned]
        for found in predictions:
            check(found, learned[found.task].logits[index])
    prompted = sum(one.prompt.image is not None for one in learned.values())
    passes = re.search(r'passes;desc="(\d+)"', response.headers["server-timing"])
    assert passes is not None
    assert int(passes[1]) == len(IMAGES) * (1 + prompted)


def test_the_image_vectors_matter(
    learned: dict[str, Learned], vit: Bundle, backbone: Backbone
) -> None:
    for task, one in learned.items():
        if one.prompt.image is not None:
            plain = logits_of(replace(one.prompt, image=None), IMAGES[0], vit, backbone)
            assert np.abs(plain - one.logits[0]).max() > 10 * LOGIT_ROUNDING, task


@pytest.mark.parametrize("task", ["adapt", "adapt-l2", "adapt-auto"])
def test_adapt_is_pruned_to_its_target_and_the_rows_left_are_served(
    task: str, files: dict[str, Path], learned: dict[str, Learned], vit: Bundle
) -> None:
    shown = json.loads(run("inspect", files[task], "--json"))
    by_block = {branch: of["rows_by_block"] for branch, of in shown["encodings"].items()}
    encoders = Encoders.open(vit, cuda_device=None, threads=1)

    rows = encoders.prompted.lay_out(folded_image(learned[task].prompt, vit.text_side))

    assert sum(map(sum, by_block.values())) == shown["training"]["tokens"]
    if task == "adapt-auto":
        assert shown["training"]["tokens"] in TOKENS
    else:
        assert by_block.keys() == {"text", "image"}
    assert ([] if rows is None else [len(of) for of in rows.keys]) == by_block.get("image", [])
    assert rows is None or len(rows.entering) == 0


def test_inspect_says_which_tasks_need_a_pass_of_their_own(
    files: dict[str, Path], learned: dict[str, Learned]
) -> None:
    for task, one in learned.items():
        alone = "for this task alone; on plain vision transformers only" in run(
            "inspect", files[task]
        )
        assert alone == (one.prompt.image is not None)


def test_a_minute_of_mixed_load_with_uploads_and_rollbacks(
    served_vit: Served, learned: dict[str, Learned]
) -> None:
    """Sixteen clients ask; meanwhile some names get new versions and are rolled back."""
    known = {version_of(one.data): one.logits for one in learned.values()}
    turning = {f"turning-{n}": random.Random(n).sample([*learned], 6) for n in range(4)}
    for name, order in turning.items():
        for task in order[:2]:  # something to roll back to
            upload(served_vit.url, name, learned[task].data)
    finished = threading.Event()
    names = [*learned, *turning]

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        changing = pool.submit(change, served_vit.url, learned, turning, finished.is_set)
        asking = [
            pool.submit(ask, served_vit.url, names, seed, known, finished.is_set)
            for seed in range(CLIENTS)
        ]
        wait(asking, LOAD_SECONDS, return_when=FIRST_EXCEPTION)
        finished.set()

    changes = changing.result()  # raises what went wrong
    seen = sum((client.result() for client in asking), Counter[tuple[str, str]]())
    print(dict(changes), f"{seen.total()} answers of {len(seen)} versions, all right")
    assert {name for name, _ in seen} == set(names)
    for name in turning:
        assert sum(asked == name for asked, _ in seen) > 1
    assert min(changes.values()) > 10


def change(
    url: str,
    learned: dict[str, Learned],
    turning: dict[str, list[str]],
    is_finished: Callable[[], bool],
) -> Counter[str]:
    """Upload a version of a name and roll the name back, in turn; each holds at once."""
    done: Counter[str] = Counter()
    with httpx.Client(base_url=url, timeout=60) as http:
        for turn in itertools.count():
            if is_finished():
                return done
            for name, order in turning.items():
                data = learned[order[turn % len(order)]].data
                before = http.get(f"/v1/tasks/{name}").json()["version"]
                http.put(f"/v1/tasks/{name}", content=data).raise_for_status()
                assert http.get(f"/v1/tasks/{name}").json()["version"] == version_of(data)
                done["uploads"] += 1
                if before != version_of(data):
                    http.post(f"/v1/tasks/{name}/rollback").raise_for_status()
                    assert http.get(f"/v1/tasks/{name}").json()["version"] == before
                    done["rollbacks"] += 1
                    http.put(f"/v1/tasks/{name}", content=data).raise_for_status()
            time.sleep(0.05)
    return done


def ask(
    url: str,
    names: list[str],
    seed: int,
    known: dict[str, list[FloatArray]],
    is_finished: Callable[[], bool],
) -> Counter[tuple[str, str]]:
    """Ask some tasks at a time and check every answer against the version that it names."""
    chosen = random.Random(seed)
    seen: Counter[tuple[str, str]] = Counter()
    with httpx.Client(base_url=url, timeout=60) as http:
        while not is_finished():
            images = chosen.sample(range(len(IMAGES)), chosen.randint(1, 2))
            response = http.post(
                "/v1/classify",
                files=[("image", (f"{index}.png", IMAGES[index])) for index in images],
                data={
                    "task": chosen.sample(names, chosen.choice((1, 1, 2, 4))),
                    "top_k": str(len(COLORS)),
                },
                headers={"accept": "application/x-ndjson"} if chosen.random() < 0.3 else {},
            )
            assert response.status_code == 200, response.text
            for index, found in predictions(response):
                check(found, known[found.version][images[index]])
                seen[found.task, found.version] += 1
    return seen


def predictions(response: httpx.Response) -> Iterator[tuple[int, TaskPrediction]]:
    """Yield (number of the image, prediction) of an answer in either form."""
    if "ndjson" in response.headers["content-type"]:
        *lines, last = response.text.splitlines()
        assert json.loads(last)["complete"]
        for line in map(ImageLine.model_validate_json, lines):
            assert line.prediction is not None
            yield line.index, line.prediction
        return
    for index, result in enumerate(ClassifyAnswer.model_validate_json(response.content).results):
        for found in result.predictions or []:
            yield index, found
