"""Folding: what a compact encoding means, against sums written out."""

import numpy as np
import pytest

from prompt_serve.encodings import Dense, LowRank
from prompt_serve.errors import PromptFileInvalid
from prompt_serve.folding import fold
from tests.golden import half


def test_a_dense_context_folds_to_itself(rng: np.random.Generator) -> None:
    for shape in ((4, 8), (3, 4, 8)):
        context = half(rng.normal(size=shape))
        folded = fold(Dense(context=context), np.zeros((4, 8), np.float32))
        assert folded.dtype == np.float32
        assert (folded == context).all()


@pytest.mark.parametrize("base", ["template", "none"])
def test_low_rank_is_the_template_plus_the_product(rng: np.random.Generator, base: str) -> None:
    words = rng.normal(size=(4, 8)).astype(np.float32)
    p_a, p_b = half(rng.normal(size=(4, 2))), half(rng.normal(size=(2, 8)))
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
    zero = LowRank(p_a=half(np.zeros((4, 1))), p_b=half(rng.normal(size=(1, 8))))
    assert (fold(zero, words) == words).all()


def test_another_number_of_words_is_refused() -> None:
    encoding = LowRank(p_a=half(np.ones((4, 1))), p_b=half(np.ones((1, 8))))
    with pytest.raises(PromptFileInvalid, match=r"shape \(4, 8\), but the template's"):
        fold(encoding, np.zeros((3, 8), np.float32))
