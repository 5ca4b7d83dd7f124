"""Folding: what a compact encoding means, against sums written out."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
)
from prompt_serve.prompts.folding import fold, fold_image, fold_text
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray
from tests.golden import GOLDEN, quantized, to_float16

WORDS = np.array([[10, 20, 30, 40], [50, 60, 70, 80], [1, 1, 1, 1]], np.float32)


def test_a_dense_context_folds_to_itself(rng: np.random.Generator) -> None:
    for shape in ((4, 8), (3, 4, 8)):
        context = to_float16(rng.normal(size=shape))
        folded = fold(Dense(context=context), np.zeros((4, 8), np.float32))
        assert folded.dtype == np.float32
        assert (folded == context).all()


@pytest.mark.parametrize("base", ["template", "none"])
def test_low_rank_is_the_template_plus_the_product(rng: np.random.Generator, base: str) -> None:
    words = rng.normal(size=(4, 8)).astype(np.float32)
    p_a, p_b = to_float16(rng.normal(size=(4, 2))), to_float16(rng.normal(size=(2, 8)))
    folded = fold(
        LowRank(p_a=p_a, p_b=p_b, base="template" if base == "template" else "none"), words
    )
    for m, d in np.ndindex(4, 8):
        product = sum(float(p_a[m, r]) * float(p_b[r, d]) for r in range(2))
        start = float(words[m, d]) if base == "template" else 0.0
        # Two float32 products and two sums of numbers near one: a few units in the last place.
        assert folded[m, d] == pytest.approx(start + product, abs=1e-6)


def test_zero_factors_fold_to_the_template_exactly(rng: np.random.Generator) -> None:
    words = rng.normal(size=(4, 8)).astype(np.float32)
    zero = LowRank(p_a=to_float16(np.zeros((4, 1))), p_b=to_float16(rng.normal(size=(1, 8))))
    assert (fold(zero, words) == words).all()


def test_another_number_of_words_is_refused() -> None:
    encoding = LowRank(p_a=to_float16(np.ones((4, 1))), p_b=to_float16(np.ones((1, 8))))
    with pytest.raises(PromptFileInvalid, match=r"shape \(4, 8\), but the template's"):
        fold(encoding, np.zeros((3, 8), np.float32))


def test_quantized_tensors_fold_to_the_numbers_they_stand_for() -> None:
    dense = Dense(context=quantized([[0, 1, 1, 0], [1, 0, 0, 0]], [-0.5, 2.0]))
    assert fold(dense, WORDS).tolist() == [[-0.5, 2, 2, -0.5], [2, -0.5, -0.5, -0.5]]
    low_rank = LowRank(
        p_a=quantized([[1], [0]], [0.5, 2.0]), p_b=quantized([[0, 1, 1, 0]], [-1.0, 3.0])
    )
    assert fold(low_rank, WORDS).tolist() == [[8, 26, 36, 38], [49.5, 61.5, 71.5, 79.5]]


def test_of_more_words_than_vectors_the_first_are_built_on() -> None:
    two = LowRank(p_a=to_float16([[1.0], [2.0]]), p_b=to_float16([[1, 0, 0, -1]]))
    assert fold(two, WORDS).tolist() == [[11, 20, 30, 39], [52, 60, 70, 78]]


def test_the_blocks_of_a_deep_context_stand_alone_but_for_the_first() -> None:
    text, image = GOLDEN["deep"].text, GOLDEN["deep"].image
    assert isinstance(text, Deep)
    assert isinstance(image, Deep)
    folded = fold_text(text, WORDS)
    assert folded.context is not None
    assert folded.context.tolist() == [[10.5, 20.25, 29, 44], [49.75, 59.875, 70.5, 78]]
    assert [block.tolist() for block in folded.deeper] == [[[1, 2, 3, 4], [-5, -6, -7, -8]]]
    seen = fold_image(image, folded)
    assert seen.context is not None
    assert seen.context.tolist() == [[-1, 1, 1], [1, 1, -1]]
    assert [block.tolist() for block in seen.deeper] == [[[2, 1, 0.5], [3, 1.5, 0.75]]]
    assert not folded.keys_values


def test_ragged_rows_are_dealt_out_block_by_block() -> None:
    ragged = PrunedKeyValues(
        lengths=np.array([1, 0, 2], np.uint8), rows=to_float16([[1, 2], [3, 4], [5, 6]])
    )
    for folded in (fold_text(ragged, WORDS), fold_image(ragged, PromptVectors())):
        assert folded.context is None
        assert [rows.tolist() for rows in folded.keys_values] == [[[1, 2]], [], [[3, 4], [5, 6]]]
        assert [rows.shape for rows in folded.keys_values] == [(1, 2), (0, 2), (2, 2)]
        assert all(rows.dtype == np.float32 for rows in folded.keys_values)
    many = PrunedKeyValues(
        lengths=np.full(3, 200, np.uint8), rows=to_float16(np.arange(1_200).reshape(600, 2))
    )
    ends = [float(rows[-1, 1]) for rows in fold_text(many, WORDS).keys_values]
    assert ends == [399, 799, 1_199]  # the sum of the lengths does not fit into a byte


def projected(source: FloatArray, weight: NDArray[Any], bias: NDArray[Any]) -> list[list[float]]:
    return [
        [
            sum(float(x) * float(w) for x, w in zip(row, column, strict=True)) + float(b)
            for column, b in zip(weight.T, bias, strict=True)
        ]
        for row in source
    ]


def test_image_vectors_are_projections_of_the_text_vectors_of_their_block(
    rng: np.random.Generator,
) -> None:
    whole, w_a, w_b = (to_float16(rng.normal(size=s)) for s in ((4, 3), (4, 2), (2, 3)))
    bias = to_float16(rng.normal(size=3))
    encoding = Projected(
        layers=(Projection(factors=(whole,), bias=bias), Projection(factors=(w_a, w_b)))
    )
    first, second = (rng.normal(size=(2, 4)).astype(np.float32) for _ in range(2))
    folded = fold_image(encoding, PromptVectors(context=first, deeper=(second,)))
    assert folded.context is not None
    # A dozen float32 products of numbers near one.
    product = w_a.astype(np.float32) @ w_b.astype(np.float32)
    nothing = np.zeros(3, np.float32)
    np.testing.assert_allclose(folded.context, projected(first, whole, bias), atol=2e-6)
    np.testing.assert_allclose(folded.deeper[0], projected(second, product, nothing), atol=2e-6)


def test_projections_want_text_vectors_of_as_many_blocks_and_of_their_width() -> None:
    encoding = Projected(layers=(Projection(factors=(to_float16(np.ones((4, 3))),)),))
    vectors = np.ones((2, 4), np.float32)
    for text in (
        PromptVectors[FloatArray](),
        PromptVectors(context=vectors, deeper=(vectors,)),
        PromptVectors(context=vectors[:, :3]),
    ):
        with pytest.raises(PromptFileInvalid, match="There are 1 projections of vectors 4 wide"):
            fold_image(encoding, text)


def test_a_conditional_context_folds_to_what_no_image_shifts() -> None:
    text = GOLDEN["conditional"].text
    assert isinstance(text, Conditional)
    folded = fold_text(text, WORDS)
    assert folded.context is not None
    assert folded.context.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_nothing_learned_folds_to_nothing() -> None:
    for folded in (fold_text(None, WORDS), fold_image(None, PromptVectors(context=WORDS))):
        assert folded == PromptVectors()


LOW_RANK = LowRank(p_a=to_float16([[1.0], [2.0]]), p_b=to_float16([[1, 0, 0, -1]]))
DENSE = Dense(context=to_float16([[1, 2, 3, 4]]))
OF_CLASSES = Dense(context=to_float16(np.arange(24).reshape(3, 2, 4)))


@pytest.mark.parametrize("encoding", [LOW_RANK, DENSE, OF_CLASSES])
def test_a_shallow_text_context_is_the_folded_layer(encoding: Dense | LowRank) -> None:
    folded = fold_text(encoding, WORDS)

    assert folded.context is not None
    assert folded.context.tolist() == fold(encoding, WORDS).tolist()
    assert (folded.deeper, folded.keys_values) == ((), ())


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (DENSE, [[1, 2, 3, 4]]),
        (
            LowRank(p_a=to_float16([[1.0], [2.0]]), p_b=to_float16([[1, 0, -1]]), base="none"),
            [[1, 0, -1], [2, 0, -2]],
        ),
        (Dense(context=quantized([[0, 1, 1]], [-0.5, 2.0])), [[-0.5, 2, 2]]),
    ],
)
def test_a_shallow_image_context_needs_no_words(
    encoding: Dense | LowRank, expected: list[list[float]]
) -> None:
    folded = fold_image(encoding, PromptVectors())

    assert folded.context is not None
    assert folded.context.tolist() == expected
    assert (folded.deeper, folded.keys_values) == ((), ())


@pytest.mark.parametrize("vectors", [1, 2, 5])
def test_an_image_context_that_builds_on_words_is_refused(vectors: int) -> None:
    encoding = LowRank(p_a=to_float16(np.ones((vectors, 1))), p_b=to_float16(np.ones((1, 4))))
    with pytest.raises(
        PromptFileInvalid, match=r"words before the class name make one of \(0, 4\)"
    ):
        fold_image(encoding, PromptVectors())
