"""``prompt-serve inspect``: every kind of prompt file, as text and as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    ImageEncoding,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
    TextEncoding,
)
from prompt_serve.prompts.prompt_file import Prompt, write_prompt_file
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.types import BackboneRef, HalfArray
from tests.cli.conftest import Run

WIDTH, IMAGE_WIDTH = 8, 12


def zeros(*shape: int) -> HalfArray:
    return np.zeros(shape, dtype=np.float16)


def coded(*shape: int) -> QuantizedTensor:
    return QuantizedTensor(indices=np.zeros(shape, dtype=np.uint8), codebook=zeros(2))


def low_rank(width: int = WIDTH, *, words: bool = False) -> LowRank:
    return LowRank(p_a=zeros(4, 1), p_b=zeros(1, width), base="template" if words else "none")


NINE_BLOCKS = Deep(layers=(low_rank(words=True), *(low_rank() for _ in range(8))))
RAGGED = PrunedKeyValues(lengths=np.asarray([2, 0, 1], dtype=np.uint8), rows=zeros(3, WIDTH))
PROJECTION = Projection(factors=(zeros(WIDTH, 2), zeros(2, IMAGE_WIDTH)), bias=zeros(IMAGE_WIDTH))
CONDITIONAL = Conditional(
    context=zeros(4, WIDTH), w_1=zeros(2, 5), b_1=zeros(2), w_2=zeros(WIDTH, 2), b_2=zeros(WIDTH)
)

KINDS: dict[str, tuple[TextEncoding | None, ImageEncoding | None, list[str]]] = {
    "none": (None, None, ["learned          none"]),
    "low rank": (
        low_rank(words=True),
        None,
        [
            "text branch      low_rank, base template",
            "  text.p_a       4 x 1 float16, 8 bytes",
            "  text.p_b       1 x 8 float16, 16 bytes",
        ],
    ),
    "coded": (
        Dense(context=coded(4, WIDTH)),
        None,
        ["text branch      codebook", "  text.context   4 x 8 1-bit codes, 8 bytes"],
    ),
    "deep": (
        NINE_BLOCKS,
        None,
        [
            "text branch      deep low_rank, 9 blocks, base template",
            "  text.0-8.p_a   4 x 1 float16, 8 bytes each, 9 tensors",
            "  text.0-8.p_b   1 x 8 float16, 16 bytes each, 9 tensors",
        ],
    ),
    "ragged": (
        RAGGED,
        None,
        [
            "text branch      ragged, rows per block 2 0 1",
            "  text.lengths   3 uint8, 3 bytes",
            "  text.rows      3 x 8 float16, 48 bytes",
        ],
    ),
    "projected": (
        Dense(context=zeros(4, WIDTH)),
        Projected(layers=(PROJECTION,)),
        [
            "text branch      dense",
            "image branch     projected, 1 block",
            "  text.context   4 x 8 float16, 64 bytes",
            "  image.0.w_a    8 x 2 float16, 32 bytes",
            "  image.0.w_b    2 x 12 float16, 48 bytes",
            "  image.0.bias   12 float16, 24 bytes",
        ],
    ),
    "some blocks coded": (
        Deep(
            layers=(
                Dense(context=zeros(4, WIDTH)),
                Dense(context=coded(4, WIDTH)),
                Dense(context=zeros(4, WIDTH)),
            )
        ),
        None,
        [
            "text branch      deep codebook, 3 blocks",
            "  text.0,2.context 4 x 8 float16, 64 bytes each, 2 tensors",
            "  text.1.context 4 x 8 1-bit codes, 8 bytes",
        ],
    ),
    "conditional": (
        CONDITIONAL,
        None,
        [
            "text branch      conditional",
            "  text.context   4 x 8 float16, 64 bytes",
            "  text.w_1       2 x 5 float16, 20 bytes",
            "  text.b_1       2 float16, 4 bytes",
            "  text.w_2       8 x 2 float16, 32 bytes",
            "  text.b_2       8 float16, 16 bytes",
        ],
    ),
}


def written(folder: Path, kind: str, **fields: Any) -> tuple[Prompt, Path]:
    text, image, _ = KINDS[kind]
    backbone = BackboneRef(
        id="tiny", fingerprint="0" * 64, text_width=WIDTH, embed_dim=5, context_length=16
    )
    prompt = Prompt(
        name="pets",
        method="by-hand",
        class_names=("cat", "dog"),
        templates=("a photo of a {}.",),
        backbone=backbone,
        probe=zeros(2),
        text=text,
        image=image,
        **fields,
    )
    path = folder / "pets.safetensors"
    write_prompt_file(prompt, path)
    return prompt, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoding_is_described_in_a_few_lines(kind: str, run: Run, tmp_path: Path) -> None:
    _, path = written(tmp_path, kind)

    lines = run("inspect", path).output.splitlines()

    first = next(
        i for i, line in enumerate(lines) if "branch" in line or line.startswith("learned ")
    )
    last = next(i for i, line in enumerate(lines) if line.startswith("learned numbers"))
    assert lines[first:last] == KINDS[kind][2]


@pytest.mark.parametrize("kind", KINDS)
def test_json_holds_every_tensor_and_setting(kind: str, run: Run, tmp_path: Path) -> None:
    prompt, path = written(tmp_path, kind, temperature=1.5, unknown_below=0.25)

    shown = json.loads(run("inspect", path, "--json").output)

    assert shown["tensors"].keys() == prompt.tensors.keys()
    for name, tensor in prompt.tensors.items():
        assert shown["tensors"][name]["shape"] == list(tensor.shape)
        assert shown["tensors"][name]["bytes"] == tensor.nbytes
    assert shown["encodings"].keys() == prompt.encodings.keys()
    for branch, encoding in prompt.encodings.items():
        assert shown["encodings"][branch]["options"] == encoding.options()
    assert (shown["temperature"], shown["unknown_below"]) == (1.5, 0.25)
    assert shown["payload_bytes"] == prompt.payload_bytes
    assert shown["learned_numbers"] == prompt.learned_numbers


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_serving_is_shown(kind: str, run: Run, tmp_path: Path) -> None:
    _, path = written(tmp_path, kind)

    shown = run("inspect", path).output

    expected = {"projected": "one pass through the image encoder per image for this task alone",
                "conditional": "not possible"}  # fmt: skip
    assert f"serving          {expected.get(kind, 'shares the pass of an image')}" in shown


def test_calibration_is_shown(run: Run, tmp_path: Path) -> None:
    _, path = written(tmp_path, "low rank", temperature=1.234567, unknown_below=0.5)

    shown = run("inspect", path).output

    assert "temperature      1.235\n" in shown
    assert "unknown below    0.5\n" in shown


PART = {
    "images": 200,
    "accuracy": 0.615,
    "zero_shot_accuracy": 0.5,
    "calibration_error": 0.031,
    "interval": [0.546, 0.68],
    "per_class": [0.2, None],
    "confusions": [[0, 1, 80]],
}


@pytest.mark.parametrize(
    ("metrics", "lines"),
    [
        (
            {"cross-validation": PART, "warnings": ["Never predicted (cross-validation): dog."]},
            ["metrics",
             "  cross-validation 61.5% of 200 images (95 % interval 54.6% to 68.0%), zero-shot "
             "50.0%, calibration error 3.1%",
             "    recall       cat 20%",
             "    confused     cat as dog (80)",
             "  warning        Never predicted (cross-validation): dog."],
        ),
        ({"test": {"images": 8, "accuracy": 0.5}},
         ["metrics", "  test           50.0% of 8 images"]),
        ({"images": {"train": 8}}, ["metrics", "  images         train 8"]),
        ({}, ["metrics          none"]),
        # Free form: what is not known is shown as it is.
        ({"test": {"accuracy": "good"}}, ["metrics", '  test           accuracy "good"']),
        ({"warnings": "none"}, ["metrics", '  warnings       "none"']),
        ({"test": {"images": 8, "accuracy": 0.5, "per_class": [0.5]}},
         ["metrics", "  test           accuracy 0.5, images 8, per_class [1: 0.5]"]),
        ({"test": {"images": 8, "accuracy": 0.5, "confusions": [[0, 2, 1]]}},
         ["metrics", "  test           accuracy 0.5, confusions [1: [0, 2, 1]], images 8"]),
    ],
)  # fmt: skip
def test_what_was_measured_is_shown_with_the_names_of_the_classes(
    run: Run, tmp_path: Path, metrics: dict[str, Any], lines: list[str]
) -> None:
    _, path = written(tmp_path, "low rank", metrics=metrics)

    shown = run("inspect", path).output.splitlines()

    first = next(i for i, line in enumerate(shown) if line.startswith("metrics"))
    last = next(i for i, line in enumerate(shown) if line.startswith("created"))
    assert shown[first:last] == lines
    assert json.loads(run("inspect", path, "--json").output)["metrics"] == metrics
