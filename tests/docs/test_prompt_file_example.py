"""The example of class vectors and a sketch in docs/prompt-file.md, computed byte by byte."""

import re
from dataclasses import replace

import numpy as np
import pytest

from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch, LabelVectors
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.scoring import best_labels, calibrated, class_logits, is_unlike
from prompt_serve.types import BackboneRef
from tests.golden import to_float16
from tests.service.process import ROOT

LOGIT_SCALE = 100.0


@pytest.fixture
def example() -> Prompt:
    return Prompt(
        name="example",
        method="class-vectors",
        class_names=("a", "b", "c"),
        templates=("a photo of a {}.",),
        backbone=BackboneRef(
            id="example", fingerprint="0" * 64, text_width=2, embed_dim=2, context_length=16
        ),
        probe=to_float16([0, 0, 0]),
        classes=ClassVectors(
            rows=QuantizedTensor(
                indices=np.array([[0, 0], [1, 0], [0, 1]], np.uint8), codebook=to_float16([0, 1])
            ),
            scales=to_float16([1, 6, 8]),
        ),
        sketch=ImageSketch(
            means=QuantizedTensor(
                indices=np.array([[1, 1]], np.uint8), codebook=to_float16([-1, 1])
            )
        ),
        temperature=20.0,
        unlike_below=0.5,
    )


def test_the_tensors_are_the_bytes_of_the_page(example: Prompt) -> None:
    page = (ROOT / "docs" / "prompt-file.md").read_text()
    (section,) = re.findall(r"### Example\n(.*?)### Sizes", page, re.DOTALL)
    assert example.payload_bytes == 16
    assert tensor_bytes(example) == shown_bytes(section)


@pytest.fixture
def of_labels(example: Prompt) -> Prompt:
    return replace(
        example,
        class_names=("a", "b"),
        probe=to_float16([0, 0]),
        classes=LabelVectors(
            rows=QuantizedTensor(
                indices=np.array([[1, 0], [1, 1]], np.uint8), codebook=to_float16([0, 1])
            ),
            scales=to_float16([4, 8]),
            offsets=to_float16([-2, -12]),
            thresholds=to_float16([0.5, 0.375]),
        ),
        sketch=None,
        temperature=1.0,
        unlike_below=-1.0,
    )


def test_the_example_of_labels_is_that_of_the_page(of_labels: Prompt) -> None:
    page = (ROOT / "docs" / "prompt-file.md").read_text()
    (section,) = re.findall(r"### Label vectors\n(.*?)### Image sketch", page, re.DOTALL)
    assert of_labels.payload_bytes == 17
    assert tensor_bytes(of_labels) == shown_bytes(section)

    stored = from_bytes(to_bytes(of_labels)).classes
    assert isinstance(stored, LabelVectors)
    features, scores = stored.class_features()
    image = np.array([[0.6, 0.8]], np.float32)
    np.testing.assert_allclose(scores.log_odds(image @ features.T)[0], [0.4, -0.8], atol=1e-5)
    best = best_labels(image, features, scores, LOGIT_SCALE, 2)
    np.testing.assert_allclose(best.probabilities[0], [0.599, 0.310], atol=5e-4)
    assert best.accepted is not None
    assert best.accepted[0].tolist() == [0]


def tensor_bytes(prompt: Prompt) -> bytes:
    data = to_bytes(prompt)
    return data[8 + int.from_bytes(data[:8], "little") :]


def shown_bytes(section: str) -> bytes:
    shown = re.findall(r"^\| `[a-z.]+` \|.*\| `([0-9a-f ]+)` \|$", section, re.MULTILINE)
    assert len(shown) == 5
    return bytes.fromhex(" ".join(shown))


def test_the_numbers_are_those_of_the_page(example: Prompt) -> None:
    task = from_bytes(to_bytes(example))
    assert task.classes is not None
    assert task.sketch is not None

    assert isinstance(task.classes, ClassVectors)
    features, scale = task.classes.class_features()

    assert scale == pytest.approx(5.0)
    assert task.temperature == pytest.approx(LOGIT_SCALE / scale)
    moved = [[-0.6, -0.8], [0.6, -0.8], [-0.6, 0.8]]
    np.testing.assert_allclose(features, moved, atol=1e-6)
    images = np.array([[0.6, 0.8], [-0.6, 0.8]], np.float32)
    logits = class_logits(images[:1], features, LOGIT_SCALE)
    np.testing.assert_allclose(logits[0] / task.temperature, [-5.0, -1.4, 1.4], atol=1e-5)
    found = calibrated(logits, task.temperature)[0]
    vectors = np.exp([0.0, 3.6, 6.4])  # x @ w_c, without any of the steps
    np.testing.assert_allclose(found, vectors / vectors.sum(), atol=1e-6)
    np.testing.assert_allclose(found, [0.002, 0.057, 0.941], atol=5e-4)
    similar = (images @ task.sketch.directions().T).max(axis=1).tolist()
    assert similar == pytest.approx([0.990, 0.141], abs=5e-4)
    assert [is_unlike(each, task.unlike_below) for each in similar] == [False, True]


@pytest.mark.parametrize(
    ("bits", "of_class", "of_codebook"), [(8, 258, 512), (4, 130, 32), (2, 66, 8), (1, 34, 4)]
)
def test_sizes_at_a_width_of_256(bits: int, of_class: int, of_codebook: int) -> None:
    for n in (2, 11):
        rows = QuantizedTensor(
            indices=np.eye(n, 256, dtype=np.uint8), codebook=to_float16(np.arange(2**bits))
        )
        tensors = ClassVectors(rows=rows, scales=to_float16(np.ones(n))).tensors()
        assert sum(tensor.nbytes for tensor in tensors.values()) == of_class * n + of_codebook
