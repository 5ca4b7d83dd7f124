"""The probe: a fixed direction that any language can compute."""

import base64
import hashlib

import numpy as np
import pytest

from prompt_serve.prompts.probe import TOLERANCE, probe, probe_difference, probe_direction
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray


def features(rng: np.random.Generator, c: int = 5, e: int = 24) -> FloatArray:
    return unit(rng.normal(size=(c, e)).astype(np.float32))


def test_the_direction_is_the_bits_of_shake_256() -> None:
    stream = hashlib.shake_256(b"prompt-serve probe 1").digest(64)
    expected = [1.0 if stream[i // 8] >> (i % 8) & 1 else -1.0 for i in range(512)]
    assert probe_direction(512).tolist() == expected
    # Narrower backbones use the first of them.
    assert probe_direction(13).tolist() == expected[:13]


def test_the_documented_example() -> None:
    """The values in docs/prompt-file.md."""
    assert probe_direction(8).tolist() == [-1, -1, 1, 1, -1, -1, 1, -1]
    class_features = np.array([[0.6, 0.8, 0, 0, 0, 0, 0, 0], [0, 0, 0.6, 0, 0, 0, 0, -0.8]])
    stored = probe(class_features.astype(np.float32))
    assert stored.dtype == np.float16
    assert stored.view(np.uint16).tolist() == [0xBD9A, 0x3D9A]  # -1.4 and 1.4
    assert base64.b64encode(stored.astype("<f2").tobytes()) == b"mr2aPQ=="


def test_a_probe_accepts_rounding_and_notices_another_backbone(rng: np.random.Generator) -> None:
    here = features(rng, e=512)
    stored = probe(here)
    nearby = here + rng.normal(scale=1e-6, size=here.shape).astype(np.float32)
    assert probe_difference(stored, nearby) < TOLERANCE
    assert probe_difference(stored, features(rng, e=512)) > 10 * TOLERANCE


def test_a_probe_notices_classes_in_another_order(rng: np.random.Generator) -> None:
    here = features(rng)
    assert probe_difference(probe(here), here[::-1]) > 10 * TOLERANCE


def test_the_direction_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        probe_direction(8)[0] = 5
