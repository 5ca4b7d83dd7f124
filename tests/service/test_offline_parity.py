"""Predictions in this process are those of the service, for every kind of prompt."""

from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

import prompt_serve
from prompt_serve.bundle import Bundle
from prompt_serve.client import Client
from prompt_serve.prompts.class_vectors import ImageSketch
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.results import ScoredImage
from prompt_serve.schemas import TaskPrediction
from prompt_serve.training.clip.backbone import Backbone
from tests.backbones import TEXT_WIDTH
from tests.service.process import Served
from tests.service.prompts import (
    deep_text,
    image_prompts,
    learned_prompt,
    picture,
    probed,
    unprobed,
)
from tests.service.tasks.test_class_vectors import class_vector_prompt, vectors
from tests.service.tasks.test_multi_label import label_vectors, multi_label_prompt

pytestmark = pytest.mark.serve

PETS = ["cat", "dog", "hamster"]
IMAGES = [picture(seed) for seed in range(5)]
# float32 rounding, times a logit scale of at most 100; a wrong scale or order is off by far more.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def prompts(tiny_backbone: Backbone, bundle: Bundle) -> dict[str, Prompt]:
    """Prompts of every kind: text, image, class vectors, multi-label, unknown images."""
    width = bundle.manifest.backbone.embed_dim
    away = ImageSketch(means=-np.eye(1, width, dtype=np.float16))
    text = learned_prompt(tiny_backbone, PETS)
    zero_shot = unprobed(tiny_backbone, PETS, None, method="zero-shot")
    several = replace(zero_shot, templates=("a photo of a {}.", "a drawing of a {}."))
    return {
        "low-rank": text,
        "per-class": learned_prompt(tiny_backbone, PETS, dense=True),
        "zero-shot": probed(zero_shot, tiny_backbone),
        "templates": probed(several, tiny_backbone),
        "warm": replace(text, temperature=7.5),
        "unknown": replace(text, unknown_below=0.999),
        **{
            f"deep-{index}": probed(unprobed(tiny_backbone, PETS, deep), tiny_backbone)
            for index, deep in enumerate(deep_text(TEXT_WIDTH).values())
        },
        **{
            f"image-{index}": probed(unprobed(tiny_backbone, PETS, words, image), tiny_backbone)
            for index, (words, image) in enumerate(image_prompts(TEXT_WIDTH, 64).values())
        },
        **{
            f"vectors-{bits}": class_vector_prompt(tiny_backbone, vectors(bits))
            for bits in (1, 2, 4, 8, 16)
        },
        "unlike": class_vector_prompt(tiny_backbone, vectors(4), sketch=away, unlike_below=0.9),
        **{
            f"labels-{bits}": multi_label_prompt(tiny_backbone, label_vectors(bits))
            for bits in (1, 2, 4, 8, 16)
        },
    }


@pytest.fixture(scope="module")
def files(prompts: dict[str, Prompt], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompt in prompts.items():
        (folder / f"{name}.safetensors").write_bytes(to_bytes(prompt))
    return {name: folder / f"{name}.safetensors" for name in prompts}


def same(here: ScoredImage, there: TaskPrediction) -> None:
    assert (here.task, here.version) == (there.task, there.version)
    assert here.unknown == there.unknown
    assert here.labels == (None if there.labels is None else tuple(there.labels))
    assert here.similarity == pytest.approx(there.similarity, abs=ROUNDING)
    assert [score.class_name for score in here.classes] == [c.class_name for c in there.classes]
    for score, other in zip(here.classes, there.classes, strict=True):
        assert score.label == other.label
        assert score.probability == pytest.approx(other.probability, abs=ROUNDING)
        assert score.logit == pytest.approx(other.logit, abs=ROUNDING)


def test_answers_are_those_of_the_service_for_every_kind_of_prompt(
    http: httpx.Client, served: Served, files: dict[str, Path], tiny_bundle: Path
) -> None:
    for name, file in files.items():
        http.put(f"/v1/tasks/{name}", content=file.read_bytes()).raise_for_status()
    with Client(served.url) as client:
        answers = client.classify(IMAGES, list(files))

    # By files in one model, and each alone: neither may change what the others say.
    together = prompt_serve.load(list(files.values()), bundle=tiny_bundle)
    found = together.predict(IMAGES)

    assert len(found) == len(IMAGES)
    for here, there in zip(found, answers, strict=True):
        for row, prediction in zip(here.rows, there.predictions or [], strict=True):
            same(row, prediction)
    for name in ("low-rank", "image-0", "image-3", "vectors-4", "labels-4", "unlike"):
        alone = prompt_serve.load(files[name], bundle=tiny_bundle).predict(IMAGES[0])
        [prediction] = [p for p in answers[0].predictions or [] if p.task == name]
        same(alone.only, prediction)
    for name in files:
        http.delete(f"/v1/tasks/{name}").raise_for_status()
    verdicts = {row.task: row.unknown for row in found[0].rows}
    assert (verdicts["unknown"], verdicts["unlike"], verdicts["low-rank"]) == (True, True, False)
