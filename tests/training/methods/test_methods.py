"""Each method against what its paper says: counts, starts, dropout, and what its file folds to."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_serve.errors import BackboneUnsupported, ConfigInvalid
from prompt_serve.prompts.encodings import Dense, LowRank, TextEncoding
from prompt_serve.prompts.folding import fold_text
from prompt_serve.prompts.quantized_tensor import dequantize
from prompt_serve.training.methods.base import PromptLearner
from tests.training.learners import learner_of

WORDS = torch.randn(4, 512, generator=torch.Generator().manual_seed(5))


def learner(**settings: Any) -> PromptLearner:
    return learner_of(settings, WORDS, text_layers=12)


def count(learner: PromptLearner) -> int:
    return sum(p.numel() for p in learner.parameters())


def context(learner: PromptLearner) -> Tensor:
    made = learner.contexts().text.context
    assert made is not None
    return made


def text(learner: PromptLearner) -> TextEncoding:
    encoding = learner.encodings().text
    assert encoding is not None
    return encoding


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "dip"}, 516),
        ({"method": "dip", "rank": 4}, 2_064),
        ({"method": "dip", "depth": 6}, 6 * 516),
        ({"method": "coop"}, 2_048),
        ({"method": "coop", "n_ctx": 2}, 1_024),
        ({"method": "coop", "n_ctx": 16, "init": "random"}, 8_192),
        ({"method": "coop", "class_specific": True}, 3 * 2_048),
        ({"method": "coop", "depth": 3}, 3 * 2_048),
    ],
)
def test_the_counts_are_the_papers(settings: dict[str, Any], expected: int) -> None:
    made = learner(**settings)
    tensors = text(made).tensors().values()
    assert count(made) == expected
    assert sum(t.size for t in tensors) == expected
    assert sum(t.nbytes for t in tensors) == 2 * expected
    assert all(p.dtype == torch.float32 for p in made.parameters())


@pytest.mark.parametrize("frozen_init", [True, False])
def test_dip_evaluates_to_what_its_file_folds_to(frozen_init: bool) -> None:
    config: dict[str, Any] = {"rank": 2, "init_std": 0.5, "dropout": 0.5, "depth": 2}
    made = learner(frozen_init=frozen_init, **config).eval()
    folded = fold_text(text(made), WORDS.numpy())
    vectors = made.contexts().text
    assert folded.context is not None
    # float16 keeps about three digits of factors of half.
    assert np.abs(folded.context - context(made).detach().numpy()).max() < 5e-3
    assert np.abs(folded.deeper[0] - vectors.deeper[0].detach().numpy()).max() < 5e-3
    p_a, p_b = list(made.parameters())[:2]
    assert torch.equal(context(made), p_a @ p_b + (WORDS if frozen_init else 0))
    deep_a, deep_b = list(made.parameters())[2:]
    assert torch.equal(vectors.deeper[0], deep_a @ deep_b)  # deeper blocks have no words


def test_without_dropout_dip_trains_on_what_it_evaluates() -> None:
    made = learner(dropout=0.0)
    assert torch.equal(context(made.train()), context(made.eval()))


def test_dropout_falls_on_single_elements_of_the_product_and_keeps_its_mean() -> None:
    made = learner(dropout=0.25, init_std=1.0).train()
    p_a, p_b = made.parameters()
    product = (p_a @ p_b).detach()
    contexts = torch.stack([context(made).detach() - WORDS for _ in range(400)])
    left_out = contexts == 0.0
    kept = ~left_out & (product.abs() > 0.1)
    # WORDS + x - WORDS costs a few digits of x.
    assert ((contexts / product - 1 / 0.75).abs()[kept] < 1e-3).all()
    assert float(left_out.float().mean()) == pytest.approx(0.25, abs=0.01)
    # Elements fall alone: were it rows or factors, whole rows would go or stay together.
    per_row = left_out.float().mean(dim=-1)
    assert float(per_row.min()) > 0.1
    assert float(per_row.max()) < 0.4


def test_dropout_repeats_with_the_seed_whatever_else_draws_numbers() -> None:
    first, second = (learner(dropout=0.5).train() for _ in range(2))
    a = [context(first) for _ in range(3)]
    torch.rand(100)
    b = [context(second) for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], a[1])


def test_dip_starts_from_gaussian_factors_of_the_spread_asked_for() -> None:
    made = learner(init_std=0.1, rank=4)
    _, p_b = made.parameters()
    assert float(p_b.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert float(p_b.detach().mean()) == pytest.approx(0.0, abs=0.01)


def test_coop_starts_from_the_words_or_from_random_numbers() -> None:
    assert torch.equal(context(learner(method="coop")), WORDS)
    random = context(learner(method="coop", init="random", n_ctx=16)).detach()
    assert random.shape == (16, 512)
    assert float(random.std()) == pytest.approx(0.02, rel=0.05)


def test_class_specific_contexts_start_alike_from_words_and_differ_at_random() -> None:
    words = context(learner(method="coop", class_specific=True))
    assert all(torch.equal(words[c], WORDS) for c in range(3))
    random = context(learner(method="coop", class_specific=True, init="random"))
    assert not torch.equal(random[0], random[1])


def test_coop_stores_its_vectors_rounded_to_float16() -> None:
    encoding = text(learner(method="coop"))
    assert isinstance(encoding, Dense)
    assert (dequantize(encoding.context) == WORDS.numpy().astype(np.float16)).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "dip", "rank": 5}, "rank is 5; it may not exceed the 4"),
        ({"method": "dip", "n_ctx": 7}, "n_ctx is 7, but the template"),
        ({"method": "dip", "depth": 2, "class_position": "front"}, "need one context for all"),
        ({"method": "dip", "depth": 13}, "depth is 13, but the tower has 12 blocks"),
        ({"method": "coop", "depth": 2, "class_specific": True}, "need one context for all"),
        ({"method": "dip", "branch": "image"}, "must be a vision transformer"),
        ({"method": "dip", "init_std": 0.0}, "both factors would stay zero"),
        ({"method": "coop", "n_ctx": 7}, "n_ctx is 7, but the template"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises((ConfigInvalid, BackboneUnsupported), match=reason):
        learner(**settings)


def test_both_factors_get_gradients() -> None:
    made = learner()
    context(made).sum().backward()  # type: ignore[no-untyped-call]
    assert isinstance(text(made), LowRank)
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
