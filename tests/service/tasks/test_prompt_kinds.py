"""Prompts of every kind over HTTP: served as learned, or refused with the reason."""

from dataclasses import replace

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.encodings import Deep, LowRank
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.schemas import ClassifyAnswer, Problem, TaskInfo, TaskPrediction
from prompt_serve.scoring import class_logits
from prompt_serve.service.inference.engine import Engine
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.backbones import EMBED_DIM, TEXT_WIDTH
from tests.service.prompts import (
    Numbers,
    conditional,
    deep_text,
    learned_prompt,
    picture,
    probed,
    ragged,
    unprobed,
)

pytestmark = pytest.mark.serve

PETS = ["cat", "dog", "hamster"]
# float32 rounding of batches of other sizes, times a logit scale of 14.
LOGIT_ROUNDING = 5e-5


def put(http: httpx.Client, name: str, prompt: Prompt) -> TaskInfo:
    response = http.put(f"/v1/tasks/{name}", content=to_bytes(prompt))
    assert response.status_code in (200, 201), response.text
    return TaskInfo.model_validate_json(response.content)


def ask(http: httpx.Client, image: bytes, tasks: list[str], top_k: int = 3) -> list[TaskPrediction]:
    response = http.post(
        "/v1/classify", files={"image": image}, data={"task": tasks, "top_k": top_k}
    )
    found = ClassifyAnswer.model_validate_json(response.content).results[0].predictions
    assert found is not None
    return found


def logits_of(
    prompt: Prompt, image: bytes, bundle: Bundle, engine: Engine, backbone: Backbone
) -> FloatArray:
    pixels = pixels_from_bytes(image, bundle.manifest.preprocessing)
    features = engine.encode_images(pixels[np.newaxis])
    logits = class_logits(features, class_features_of(prompt, backbone), backbone.logit_scale)
    return np.asarray(logits[0])


def refused(http: httpx.Client, data: bytes, code: str) -> str:
    response = http.put("/v1/tasks/refused", content=data)
    found = Problem.model_validate_json(response.content)
    assert (response.status_code, found.code) == (422, code), found
    assert http.get("/v1/tasks/refused").status_code == 404
    return found.detail


def test_deep_prompts_answer_as_in_training(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    image, kinds = picture(1), deep_text(TEXT_WIDTH)
    prompts = [probed(unprobed(tiny_backbone, PETS, t), tiny_backbone) for t in kinds.values()]
    names = [f"deep-{index}" for index in range(len(prompts))]
    infos = [put(http, name, prompt) for name, prompt in zip(names, prompts, strict=True)]

    answers = ask(http, image, names)

    assert [info.encodings["text"] for info in infos[:4]] == [
        "deep low_rank",
        "deep dense",
        "deep codebook",
        "ragged",
    ]
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = logits_of(prompt, image, bundle, engine, tiny_backbone)
        for score in answer.classes:
            assert score.logit == pytest.approx(float(expected[score.label]), abs=LOGIT_ROUNDING)
    for name in names:
        http.delete(f"/v1/tasks/{name}")


def test_conditional_prompts_are_refused(http: httpx.Client, tiny_backbone: Backbone) -> None:
    revision = http.get("/v1/info").json()["revision"]
    text = conditional(TEXT_WIDTH, EMBED_DIM)
    prompt = probed(unprobed(tiny_backbone, PETS, text), tiny_backbone)

    detail = refused(http, to_bytes(prompt), "prompt-unsupported")

    assert "different class features for every image" in detail
    assert "'dip'" in detail
    assert http.get("/v1/info").json()["revision"] == revision


def test_a_refused_prompt_leaves_the_task_that_is_served(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    served = put(http, "stays", learned_prompt(tiny_backbone, PETS))
    text = conditional(TEXT_WIDTH, EMBED_DIM)
    prompt = probed(unprobed(tiny_backbone, PETS, text), tiny_backbone)

    assert http.put("/v1/tasks/stays", content=to_bytes(prompt)).status_code == 422
    assert http.get("/v1/tasks/stays").json()["version"] == served.version
    http.delete("/v1/tasks/stays")


def test_prompts_for_a_tower_of_another_shape_are_refused(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    numbers = Numbers()

    def deep(blocks: int, width: int) -> Deep:
        layer = LowRank(p_a=numbers(2, 1), p_b=numbers(1, width), base="none")
        return Deep(layers=(layer,) * blocks)

    too_deep = unprobed(tiny_backbone, PETS, deep(9, TEXT_WIDTH))
    too_many = unprobed(tiny_backbone, PETS, ragged(numbers, TEXT_WIDTH, 1, 0, 4))
    wide = tiny_backbone.ref.model_copy(update={"text_width": 48})
    too_wide = to_bytes(
        replace(unprobed(tiny_backbone, PETS, None), backbone=wide, text=deep(2, 48))
    )

    assert "9 blocks; the text tower has 2" in refused(
        http, to_bytes(too_deep), "prompt-file-invalid"
    )
    assert "3 blocks; the text tower has 2" in refused(
        http, to_bytes(too_many), "prompt-file-invalid"
    )
    assert "text width 48" in refused(http, too_wide, "backbone-mismatch")
    claims_to_fit = too_wide.replace(rb"\"text_width\":48", rb"\"text_width\":32")
    assert claims_to_fit != too_wide
    assert "48 wide" in refused(http, claims_to_fit, "prompt-file-invalid")


def test_probabilities_have_the_temperature_of_their_task_and_logits_do_not(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    image, prompt = picture(2), learned_prompt(tiny_backbone, PETS)
    temperatures = {"t-cold": 0.25, "t-plain": 1.0, "t-hot": 4.0}
    for name, temperature in temperatures.items():
        info = put(http, name, replace(prompt, temperature=temperature))
        assert info.temperature == temperature

    answers = ask(http, image, list(temperatures))

    logits = logits_of(prompt, image, bundle, engine, tiny_backbone).astype(np.float64)
    for temperature, answer in zip(temperatures.values(), answers, strict=True):
        weights = np.exp(logits / temperature)
        expected = weights / weights.sum()
        assert [s.label for s in answer.classes] == list(np.argsort(-logits))
        for score in answer.classes:
            assert score.logit == pytest.approx(float(logits[score.label]), abs=LOGIT_ROUNDING)
            # A logit off by LOGIT_ROUNDING, divided by a temperature of 0.25.
            assert score.probability == pytest.approx(float(expected[score.label]), abs=2e-4)
    for name in temperatures:
        http.delete(f"/v1/tasks/{name}")


def test_an_image_below_the_threshold_is_unknown_and_keeps_its_classes(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    image, prompt = picture(3), learned_prompt(tiny_backbone, PETS)
    put(http, "u-plain", prompt)
    best = ask(http, image, ["u-plain"])[0].classes[0].probability
    for name, threshold in (("u-below", best - 0.01), ("u-above", best + 0.01)):
        assert put(http, name, replace(prompt, unknown_below=threshold)).unknown_below == threshold
    http.post("/v1/tasks", json={"name": "u-zero", "class_names": PETS})

    names = ["u-plain", "u-below", "u-above", "u-zero"]
    answers = ask(http, image, names, top_k=1)

    assert [answer.unknown for answer in answers] == [False, False, True, False]
    assert answers[2].classes == answers[0].classes
    zero = TaskInfo.model_validate_json(http.get("/v1/tasks/u-zero").content)
    assert (zero.temperature, zero.unknown_below, zero.encodings) == (1.0, 0.0, {})
    for name in names:
        http.delete(f"/v1/tasks/{name}")


def test_the_interface_is_documented(http: httpx.Client) -> None:
    schemas = http.get("/v1/openapi.json").json()["components"]["schemas"]

    assert schemas["TaskPrediction"]["properties"]["unknown"]["type"] == "boolean"
    assert {"temperature", "unknown_below", "encodings"} <= schemas["TaskInfo"]["properties"].keys()
