"""Files that the attack draws are what it says, and planted faults are found."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from drills.attacks.odd_prompts import (
    N_IMAGES,
    OddPrompt,
    images,
    judge,
    nearly_valid_prompt,
    valid_prompt,
)
from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import PromptServeError
from prompt_serve.offline.model import Model, load_task
from prompt_serve.prompts.prompt_file import from_bytes

BUNDLES = ("embedded", "embedded-vit")
Prediction = dict[str, Any]


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoders]:
    return {
        name: Encoders.open(open_bundle(shipped_bundle(name)), cuda_device=None, threads=1)
        for name in BUNDLES
    }


def predictions(file: OddPrompt, of: Encoders) -> list[Prediction]:
    """What this process answers for each image."""
    task = load_task(from_bytes(file.data), file.version, of)
    model = Model([("odd", task)], of.bundle, encoders=of)
    scored = model.predict(images(), top_k=len(file.class_names))
    return [
        {
            "version": row.version,
            "unknown": row.unknown,
            "labels": None if row.labels is None else list(row.labels),
            "similarity": row.similarity,
            "classes": [score.model_dump() for score in row.classes],
        }
        for row in scored.rows
    ]


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_file_is_valid_and_answers_as_expected(
    encoders: dict[str, Encoders], seed: int, bundle: str
) -> None:
    file = valid_prompt(seed, bundle)

    found = predictions(file, encoders[bundle])

    assert [judge(file, image, found[image]) for image in range(N_IMAGES)] == [None] * N_IMAGES
    assert valid_prompt(seed, bundle).data == file.data


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_file_is_refused_or_answers_as_expected(
    encoders: dict[str, Encoders], seed: int
) -> None:
    file = nearly_valid_prompt(seed, BUNDLES[seed % 2])

    if not file.answers:
        with pytest.raises(PromptServeError):
            predictions(file, encoders[BUNDLES[seed % 2]])
        return
    try:
        found = predictions(file, encoders[BUNDLES[seed % 2]])
    except PromptServeError:
        return  # refused: of another backbone, or with a probe of other features
    assert judge(file, 0, found[0]) is None


@pytest.fixture(scope="module")
def plain(encoders: dict[str, Encoders]) -> tuple[OddPrompt, Prediction]:
    """A file without sketch and threshold, and its right answer for the first image."""
    drawn = (valid_prompt(seed, "embedded") for seed in range(100))
    file = next(one for one in drawn if one.what.startswith("zero-shot of 7"))
    return file, predictions(file, encoders["embedded"])[0]


def _swap(answer: Prediction) -> None:
    first, second = answer["classes"][:2]
    first["label"], second["label"] = second["label"], first["label"]


def _change(answer: Prediction) -> None:
    answer["classes"][0]["probability"] -= 0.3


def _rename(answer: Prediction) -> None:
    answer["classes"][-1]["class_name"] += "x"


def _omit(answer: Prediction) -> None:
    answer["classes"].pop()


def _version(answer: Prediction) -> None:
    answer["version"] = "0" * 64


def _unknown(answer: Prediction) -> None:
    answer["unknown"] = not answer["unknown"]


def _similarity(answer: Prediction) -> None:
    answer["similarity"] = 0.123


def _labels(answer: Prediction) -> None:
    answer["labels"] = [*(answer["labels"] or ()), "another"]


@pytest.mark.parametrize(
    "plant", [_swap, _change, _rename, _omit, _version, _unknown, _similarity, _labels]
)
def test_a_planted_fault_is_found(
    plain: tuple[OddPrompt, Prediction], plant: Callable[[Prediction], None]
) -> None:
    file, right = plain
    answer = copy.deepcopy(right)
    assert judge(file, 0, answer) is None

    plant(answer)

    assert judge(file, 0, answer) is not None
