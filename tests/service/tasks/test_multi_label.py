"""Multi-label tasks over HTTP: uploaded, described, answered beside tasks of one class."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.prompts.class_vectors import ImageSketch, LabelVectors
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, dequantize
from prompt_serve.schemas import TaskPrediction
from prompt_serve.service.inference.engine import Engine
from prompt_serve.training.clip.backbone import Backbone
from tests.backbones import EMBED_DIM
from tests.service.prompts import Numbers, learned_prompt, picture
from tests.service.tasks.test_class_vectors import class_vector_prompt, image_features, vectors
from tests.service.tasks.test_prompt_kinds import LOGIT_ROUNDING, PETS, ask, put, refused

pytestmark = pytest.mark.serve


def label_vectors(bits: int, seed: int = 0) -> LabelVectors:
    rng = np.random.default_rng(seed)
    rows = QuantizedTensor(
        indices=rng.integers(0, 2 ** min(bits, 8), (3, EMBED_DIM), dtype=np.uint8),
        codebook=np.linspace(-1, 1, 2 ** min(bits, 8)).astype(np.float16),
    )
    return LabelVectors(
        rows=Numbers(seed)(3, EMBED_DIM) if bits == 16 else rows,
        scales=np.array([0.5, 1.0, 1.5], np.float16),
        offsets=np.array([-0.5, 0.0, 1.0], np.float16),
        thresholds=np.array([0.25, 0.5, 0.75], np.float16),
    )


def multi_label_prompt(backbone: Backbone, found: LabelVectors, **parts: object) -> Prompt:
    return class_vector_prompt(backbone, found, method="multi-label", **parts)  # type: ignore[arg-type]  # label vectors take the place of class vectors


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_probabilities_and_labels_are_those_of_the_stored_vectors(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone, bits: int
) -> None:
    found = label_vectors(bits)
    info = put(http, f"labels-{bits}", multi_label_prompt(tiny_backbone, found))
    assert (info.multi_label, info.thresholds) == (True, [0.25, 0.5, 0.75])
    assert info.encodings == {"classes": "label_vectors" + ("" if bits == 16 else "+codebook")}

    image = picture(bits)
    (answer,) = ask(http, image, [f"labels-{bits}"])

    w = found.scales.astype(np.float64)[:, None] * dequantize(found.rows).astype(np.float64)
    log_odds = image_features(image, bundle, engine) @ w.T + found.offsets.astype(np.float64)
    expected = dict(zip(PETS, (1 / (1 + np.exp(-log_odds))).tolist(), strict=True))
    assert {c.class_name: c.probability for c in answer.classes} == pytest.approx(
        expected, abs=LOGIT_ROUNDING
    )
    ranked = sorted(expected, key=lambda name: -expected[name])
    assert [c.class_name for c in answer.classes] == ranked
    above = {n for n, t in zip(PETS, (0.25, 0.5, 0.75), strict=True) if expected[n] >= t}
    assert answer.labels == [name for name in ranked if name in above]
    # Labels are all listed, whatever top_k is.
    (first,) = ask(http, image, [f"labels-{bits}"], top_k=1)
    assert (len(first.classes), first.labels) == (1, answer.labels)


def test_none_and_all_labels_and_one_class(http: httpx.Client, tiny_backbone: Backbone) -> None:
    low, high = (np.full(3, offset, np.float16) for offset in (-100, 100))
    for name, offsets in (("none", low), ("all", high)):
        found = replace(label_vectors(4), offsets=offsets)
        put(http, f"labels-{name}", multi_label_prompt(tiny_backbone, found))
    one = LabelVectors(
        rows=Numbers(0)(1, EMBED_DIM), scales=np.ones(1, np.float16),
        offsets=np.full(1, 9, np.float16), thresholds=np.full(1, 0.5, np.float16),
    )  # fmt: skip
    parts = {"class_names": ("cat",), "probe": np.zeros(1, np.float16)}
    put(http, "labels-one", multi_label_prompt(tiny_backbone, one, **parts))

    answers = ask(http, picture(1), ["labels-none", "labels-all", "labels-one"])

    assert [len(answer.labels or ()) for answer in answers] == [0, 3, 1]
    assert answers[0].labels == []


def test_an_image_unlike_the_sketch_is_unknown_and_keeps_its_labels(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    image = picture(7)
    features = image_features(image, bundle, engine)
    found = replace(label_vectors(4), offsets=np.full(3, 100, np.float16))
    for name, sign in (("like", 1), ("unlike", -1)):
        sketch = ImageSketch(means=sign * features[np.newaxis].astype(np.float16))
        parts = {"sketch": sketch, "unlike_below": 0.5}
        put(http, f"labels-{name}", multi_label_prompt(tiny_backbone, found, **parts))

    alike, different = ask(http, image, ["labels-like", "labels-unlike"])

    assert (alike.unknown, different.unknown) == (False, True)
    assert len(alike.labels or ()) == len(different.labels or ()) == 3


def test_a_changed_file_is_refused(http: httpx.Client, tiny_backbone: Backbone) -> None:
    prompt = multi_label_prompt(tiny_backbone, label_vectors(4))
    other = replace(prompt, classes=label_vectors(4, seed=9))
    assert "differ by" in refused(http, to_bytes(other), "probe-mismatch")


def test_all_kinds_in_one_request_answer_as_alone(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    kinds = {
        "mixed-labels-1": multi_label_prompt(tiny_backbone, label_vectors(1, seed=1)),
        "mixed-vectors": class_vector_prompt(tiny_backbone, vectors(4)),
        "mixed-labels-8": multi_label_prompt(tiny_backbone, label_vectors(8, seed=2)),
        "mixed-prompt": learned_prompt(tiny_backbone, PETS),
    }
    for name, prompt in kinds.items():
        put(http, name, prompt)
    images = [picture(seed) for seed in range(4)]
    alone = {(i, n): ask(http, image, [n])[0] for i, image in enumerate(images) for n in kinds}

    def every(turn: int) -> tuple[int, dict[str, TaskPrediction]]:
        answers = ask(http, images[turn % 4], ["*"])
        return turn % 4, {answer.task: answer for answer in answers}

    with ThreadPoolExecutor(8) as pool:
        for image, answers in pool.map(every, range(40)):
            for name in kinds:
                expected = alone[image, name]
                assert answers[name].labels == expected.labels
                assert (answers[name].labels is None) == ("labels" not in name)
                found = {c.class_name: c.probability for c in answers[name].classes}
                assert found == pytest.approx(
                    {c.class_name: c.probability for c in expected.classes}, abs=1e-3
                )
