"""What the exported graphs compute, for sizes that the export never saw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_serve.bundle import open_bundle
from prompt_serve.export.build import export_bundle
from prompt_serve.export.parity import FP32_LIMIT, open_session
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.text_inputs import TEXT_INPUTS, text_inputs
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.types import FloatArray, Precision
from tests.backbones import write_tiny_backbone
from tests.ready_graphs import ready_graphs


def vectors(rng: np.random.Generator, *shape: int) -> FloatArray:
    return rng.standard_normal((*shape, 32)).astype(np.float32)


def random_sequences(rng: np.random.Generator, p: int, c: int, s: int) -> Sequences:
    return Sequences(
        prefix=vectors(rng, p), suffix=vectors(rng, c, s), eot=rng.integers(0, s, size=c)
    )


@pytest.mark.parametrize("count", [1, 3, 17])
def test_any_number_of_images_at_once(
    tiny_bundle: Path, tiny_backbone: Backbone, rng: np.random.Generator, count: int
) -> None:
    pixels = rng.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)

    (features,) = open_session(tiny_bundle / "image_encoder.onnx").run(None, {"pixels": pixels})

    expected = tiny_backbone.encode_images(torch.from_numpy(pixels)).numpy()
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=FP32_LIMIT)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("p", [1, 5, 9])
@pytest.mark.parametrize("c", [1, 5])
@pytest.mark.parametrize("s", [1, 2, 11])
def test_any_number_of_classes_of_any_length(
    tiny_bundle: Path, tiny_backbone: Backbone, rng: np.random.Generator, p: int, c: int, s: int
) -> None:
    sequences = random_sequences(rng, p, c, s)

    (features,) = open_session(tiny_bundle / "text_encoder.onnx").run(
        None, text_inputs(sequences, layers=2)
    )

    np.testing.assert_allclose(features, tiny_backbone.encode_text(sequences), atol=FP32_LIMIT)


@pytest.mark.parametrize(
    ("m", "lengths"), [(0, (1, 0)), (0, (7, 2)), (0, (0, 0)), (1, ()), (4, ()), (3, (2, 9))]
)
def test_any_number_of_rows_in_deeper_blocks(
    tiny_bundle: Path,
    tiny_backbone: Backbone,
    rng: np.random.Generator,
    m: int,
    lengths: tuple[int, ...],
) -> None:
    sequences = replace(
        random_sequences(rng, 5, 3, 4),
        deeper=(vectors(rng, m),) if m else (),
        keys_values=tuple(vectors(rng, n) for n in lengths),
    )

    (features,) = open_session(tiny_bundle / "text_encoder.onnx").run(
        None, text_inputs(sequences, layers=2)
    )

    np.testing.assert_allclose(features, tiny_backbone.encode_text(sequences), atol=FP32_LIMIT)


def test_what_is_switched_off_changes_nothing(tiny_bundle: Path, rng: np.random.Generator) -> None:
    session = open_session(tiny_bundle / "text_encoder.onnx")
    inputs = text_inputs(random_sequences(rng, 5, 3, 4), layers=2)
    filled = {**inputs, "deeper": vectors(rng, 2, 5), "keys_values": vectors(rng, 2, 1)}

    (plain,) = session.run(None, inputs)
    (full,) = session.run(None, filled)
    (used,) = session.run(None, {**filled, "keys_values_used": np.ones((2, 1), dtype=bool)})

    np.testing.assert_array_equal(full, plain)
    assert np.abs(used - plain).max() > 1e-3


def test_axes_carry_their_names(tiny_bundle: Path) -> None:
    image = open_session(tiny_bundle / "image_encoder.onnx")
    text = open_session(tiny_bundle / "text_encoder.onnx")

    assert {i.name: i.shape for i in image.get_inputs()} == {"pixels": ["B", 32, 32, 3]}
    assert {o.name: o.shape for o in image.get_outputs()} == {"image_features": ["B", 24]}
    assert {i.name: i.shape for i in text.get_inputs()} == {
        "prefix": ["P", 32],
        "suffix": ["C", "S", 32],
        "eot": ["C"],
        "deeper": [2, "P", 32],
        "deeper_used": [2, "P"],
        "keys_values": [2, "K", 32],
        "keys_values_used": [2, "K"],
    }
    assert tuple(i.name for i in text.get_inputs()) == TEXT_INPUTS
    assert {o.name: o.shape for o in text.get_outputs()} == {"class_features": ["C", 24]}


def test_graphs_hold_no_paths_of_the_machine_they_were_made_on(tiny_bundle: Path) -> None:
    for name in ("image_encoder.onnx", "text_encoder.onnx"):
        assert b".py" not in (tiny_bundle / name).read_bytes()


@pytest.mark.parametrize(("precision", "cosine"), [("fp16", 0.99999), ("int8", 0.995)])
def test_lower_precisions_stay_close_and_smaller(
    tiny_bundle: Path,
    tiny_backbone: Backbone,
    tmp_path: Path,
    rng: np.random.Generator,
    precision: Precision,
    cosine: float,
) -> None:
    same = ("text", "row") if precision == "fp16" else ()  # as in fp32; int8 follows the tracing
    with ready_graphs(tiny_bundle, *same):
        manifest = export_bundle(tiny_backbone, tmp_path / "bundle", precision=precision)
    encoder = open_bundle(tmp_path / "bundle").image_encoder
    pixels = rng.integers(0, 256, size=(9, 32, 32, 3), dtype=np.uint8)

    (features,) = open_session(encoder).run(None, {"pixels": pixels})

    expected = tiny_backbone.encode_images(torch.from_numpy(pixels)).numpy()
    assert features.dtype == np.float32
    assert (features * expected).sum(axis=1).min() > cosine
    assert encoder.stat().st_size < 0.6 * (tiny_bundle / "image_encoder.onnx").stat().st_size
    assert manifest.precision == precision
    assert manifest.parity["image_disagreement"] <= 0.03
    assert manifest.parity["text_names"] <= FP32_LIMIT


def test_a_text_tower_that_is_not_causal_is_exported_too(tiny_bundle: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(write_tiny_backbone(tmp_path / "all", no_causal_mask=True)))

    with ready_graphs(tiny_bundle, "image", "prompted_image", "row"):  # its image tower is the same
        manifest = export_bundle(backbone, tmp_path / "bundle")

    assert not manifest.causal_text
    assert max(manifest.parity.values()) <= FP32_LIMIT
