"""Each method against what its paper says: counts, starts, dropout, and what its file folds to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_serve.encodings import Dense, LowRank
from prompt_serve.errors import ConfigInvalid
from prompt_serve.folding import fold
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import PromptLearner, Start
from prompt_serve.training.methods.coop import Coop
from prompt_serve.training.methods.dip import Dip

WORDS = torch.randn(4, 512, generator=torch.Generator().manual_seed(5))


def start(words: Tensor = WORDS, n_classes: int = 3, **settings: Any) -> Start:
    return Start(
        config=TrainConfig(**settings),
        words=words,
        n_classes=n_classes,
        generator=torch.Generator().manual_seed(1),
    )


def numbers(learner: PromptLearner) -> int:
    return sum(p.numel() for p in learner.parameters())


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        (Dip, {"method": "dip"}, 516),
        (Dip, {"method": "dip", "rank": 4}, 2_064),
        (Coop, {"method": "coop"}, 2_048),
        (Coop, {"method": "coop", "n_ctx": 16, "init": "random"}, 8_192),
        (Coop, {"method": "coop", "class_specific": True}, 3 * 2_048),
    ],
)
def test_the_counts_are_the_papers(
    method: Callable[[Start], PromptLearner], settings: dict[str, Any], count: int
) -> None:
    learner = method(start(**settings))
    tensors = learner.encoding().tensors().values()
    assert numbers(learner) == count
    assert sum(t.size for t in tensors) == count
    assert sum(t.nbytes for t in tensors) == 2 * count
    assert all(p.dtype == torch.float32 for p in learner.parameters())


@pytest.mark.parametrize("frozen_init", [True, False])
def test_dip_evaluates_to_what_its_file_folds_to(frozen_init: bool) -> None:
    learner = Dip(start(frozen_init=frozen_init, rank=2, init_std=0.5, dropout=0.5)).eval()
    folded = fold(learner.encoding(), WORDS.numpy())
    # float16 keeps about three digits of factors of half.
    assert np.abs(folded - learner.context().detach().numpy()).max() < 5e-3
    expected = learner.p_a @ learner.p_b + (WORDS if frozen_init else 0)
    assert torch.equal(learner.context(), expected)


def test_without_dropout_dip_trains_on_what_it_evaluates() -> None:
    learner = Dip(start(dropout=0.0))
    assert torch.equal(learner.train().context(), learner.eval().context())


def test_dropout_falls_on_single_elements_of_the_product_and_keeps_its_mean() -> None:
    learner = Dip(start(dropout=0.25, init_std=1.0)).train()
    product = (learner.p_a @ learner.p_b).detach()
    contexts = torch.stack([learner.context().detach() - WORDS for _ in range(400)])
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
    first, second = (Dip(start(dropout=0.5)).train() for _ in range(2))
    a = [first.context() for _ in range(3)]
    torch.rand(100)
    b = [second.context() for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], a[1])


def test_dip_starts_from_gaussian_factors_of_the_spread_asked_for() -> None:
    learner = Dip(start(init_std=0.1, rank=4))
    assert float(learner.p_b.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert float(learner.p_b.detach().mean()) == pytest.approx(0.0, abs=0.01)


def test_coop_starts_from_the_words_or_from_random_numbers() -> None:
    assert torch.equal(Coop(start(method="coop")).context(), WORDS)
    random = Coop(start(method="coop", init="random", n_ctx=16)).context().detach()
    assert random.shape == (16, 512)
    assert float(random.std()) == pytest.approx(0.02, rel=0.05)


def test_class_specific_contexts_start_alike_from_words_and_differ_at_random() -> None:
    words = Coop(start(method="coop", class_specific=True)).context()
    assert all(torch.equal(words[c], WORDS) for c in range(3))
    random = Coop(start(method="coop", class_specific=True, init="random")).context()
    assert not torch.equal(random[0], random[1])


def test_coop_stores_its_vectors_rounded_to_float16() -> None:
    encoding = Coop(start(method="coop")).encoding()
    assert isinstance(encoding, Dense)
    assert (encoding.context == WORDS.numpy().astype(np.float16)).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "dip", "rank": 5}, "rank is 5; it may not exceed the 4"),
        ({"method": "dip", "n_ctx": 7}, "n_ctx is 7, but the template"),
        ({"method": "dip", "class_specific": True}, "DIP shares one context"),
        ({"method": "dip", "init_std": 0.0}, "both factors would stay zero"),
        ({"method": "coop", "n_ctx": 7}, "n_ctx is 7, but the template"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], reason: str
) -> None:
    learner = METHODS[settings["method"]].learner
    assert learner is not None
    with pytest.raises(ConfigInvalid, match=reason):
        learner(start(**settings))


def test_both_factors_get_gradients() -> None:
    learner = Dip(start())
    learner.context().sum().backward()  # type: ignore[no-untyped-call]
    encoding = learner.encoding()
    assert isinstance(encoding, LowRank)
    for parameter in learner.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
