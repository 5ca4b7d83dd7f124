"""Codes: known levels of a normal distribution, and errors that make up for each other."""

import numpy as np
import pytest

from prompt_serve.closed_form.codes import normal_levels, quantize_rows
from prompt_serve.prompts.class_vectors import ClassVectors
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, dequantize
from prompt_serve.types import DoubleArray


def test_levels_are_those_of_max_1960() -> None:
    assert normal_levels(1) == pytest.approx([-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)], abs=1e-6)
    assert normal_levels(2) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=1e-3)
    assert normal_levels(4)[-1] == pytest.approx(2.733, abs=1e-3)  # table I of the paper


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_levels_rise_and_are_symmetric(bits: int) -> None:
    levels = normal_levels(bits)
    assert len(levels) == 2**bits
    assert (np.diff(levels) > 0).all()
    assert levels == pytest.approx(-levels[::-1], abs=1e-6)


def stored(classes: ClassVectors) -> DoubleArray:
    """The vectors that a prompt file holds."""
    rows = dequantize(classes.rows).astype(np.float64)
    return np.asarray(classes.scales.astype(np.float64)[:, np.newaxis] * rows)


def correlated(rng: np.random.Generator, width: int) -> DoubleArray:
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return np.asarray(mixing @ np.diag(np.linspace(0.05, 2.0, width)) @ mixing.T)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_scores_are_closer_than_with_plain_rounding(rng: np.random.Generator, bits: int) -> None:
    second_moment = correlated(rng, 48)
    vectors = rng.normal(size=(7, 48))
    fed_back = stored(quantize_rows(vectors, bits, second_moment))
    levels = normal_levels(bits)
    own_scales = vectors.std(axis=1, keepdims=True)
    nearest = np.abs(vectors[..., None] / own_scales[..., None] - levels).argmin(axis=-1)

    def score_error(rounded: DoubleArray) -> float:
        difference = rounded - vectors
        return float(np.einsum("ce,ef,cf->", difference, second_moment, difference))

    assert score_error(fed_back) < 0.7 * score_error(own_scales * levels[nearest])


def test_uncorrelated_dimensions_are_rounded_to_the_nearest_level(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(3, 16))
    classes = quantize_rows(vectors, 4, np.eye(16))
    assert isinstance(classes.rows, QuantizedTensor)
    scaled = vectors / classes.scales.astype(float)[:, None]
    nearest = np.abs(scaled[..., None] - classes.rows.codebook.astype(float)).argmin(axis=-1)
    np.testing.assert_array_equal(classes.rows.indices, nearest)


def test_eight_bits_are_close_to_the_vectors(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(5, 32))
    assert np.abs(stored(quantize_rows(vectors, 8, correlated(rng, 32))) - vectors).mean() < 0.02
