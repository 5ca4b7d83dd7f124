"""Rows of suffixes: every token up to EOT, and equal beginnings once, against sets of tuples."""

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_serve.prompts.sequences import plan_sequences
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.clip.suffix_rows import SuffixRows
from prompt_serve.training.clip.text_tower import PlanVectors
from prompt_serve.types import ClassPosition, IntArray

NAME_LISTS = {
    "one": ["cat"],
    "apart": ["cat", "dog", "horse"],
    "beginnings": ["Boeing 737-200", "Boeing 737-300", "Boeing 747-100", "Boeing", "Airbus A320"],
    "inner": ["red cat", "red cat house", "cat house", "red"],
    "equal": ["crane", "crane", "maillot", "crane"],
    "lengths": ["a", "a very long name of an unusually specific kind of thing", "a very"],
}


def random_suffixes(seed: int) -> tuple[IntArray, IntArray]:
    """Twenty suffixes over three ids, the last of which is EOT."""
    rng = np.random.default_rng(seed)
    suffix = rng.integers(0, 3, size=(20, 6))
    eot = rng.integers(0, 6, size=20)
    suffix[np.arange(20), eot] = 9
    return suffix, eot


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [True, False])
def test_each_beginning_has_one_row(seed: int, share: bool) -> None:
    suffix, eot = random_suffixes(seed)
    rows = SuffixRows.build(suffix, eot, share=share)

    of_beginning: dict[tuple[int, ...], int] = {}
    for c, s in np.ndindex(suffix.shape):
        if s <= eot[c]:
            beginning = (*(() if share else (-1 - c,)), *suffix[c, : s + 1].tolist())
            row = int(rows.rows[c, s])
            assert of_beginning.setdefault(beginning, row) == row
        else:
            assert rows.rows[c, s] == 0
    assert sorted(of_beginning.values()) == list(range(len(rows.tokens)))
    ids = torch.from_numpy(suffix)
    assert torch.equal(rows.gather(ids.unsqueeze(-1))[rows.last, 0], torch.full((20,), 9))


@pytest.mark.parametrize("seed", range(6))
def test_lengths_alone_give_a_row_per_token(seed: int) -> None:
    suffix, eot = random_suffixes(seed)
    rows = SuffixRows.of_lengths(torch.from_numpy(eot), suffix.shape[1])
    used = np.arange(6) <= eot[:, np.newaxis]
    assert rows.tokens.tolist() == np.flatnonzero(used).tolist()
    ids = torch.from_numpy(suffix).float().unsqueeze(-1)
    back = rows.spread(rows.gather(ids)).squeeze(-1).numpy()
    assert np.array_equal(back[used], suffix[used])


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_runs_keep_their_own_vectors(runs: int) -> None:
    suffix, eot = random_suffixes(runs)
    rows = SuffixRows.build(suffix, eot, share=True)
    x = torch.randn(runs, 20, 6, 4, generator=torch.Generator().manual_seed(0))
    each = torch.cat([rows.gather(own) for own in x])
    together = rows.of_runs(runs)
    assert torch.equal(together.gather(x.flatten(0, 1)), each)
    spread = torch.cat([rows.spread(rows.gather(own)) for own in x])
    assert torch.equal(together.spread(each), spread)
    assert torch.equal(each[together.last], torch.cat([rows.gather(own)[rows.last] for own in x]))


@pytest.mark.parametrize("names", NAME_LISTS.values(), ids=NAME_LISTS)
@pytest.mark.parametrize("position", ["end", "middle", "front", "class-specific"])
def test_features_and_gradients_are_those_without_sharing(
    tiny_backbone: Backbone, names: list[str], position: ClassPosition
) -> None:
    own = position == "class-specific"  # type: ignore[comparison-overlap]
    plan = plan_sequences(
        tiny_backbone.tokenizer,
        names,
        "a photo of a {}.",
        context_length=32,
        n_ctx=4,
        class_position="end" if own else position,
        class_specific=own,
    )
    vectors = PlanVectors(plan, tiny_backbone.token_embedding, class_specific=own)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(*([len(names)] if own else []), 4, 32, generator=generator)
    weights = torch.randn(len(names), 24, generator=generator)

    def result(rows: SuffixRows | None) -> tuple[Tensor, Tensor]:
        context = start.clone().requires_grad_()
        features = tiny_backbone.text_tower(*vectors(context), rows=rows)
        return features.detach(), torch.autograd.grad((features * weights).sum(), context)[0]

    (shared, gradient), (apart, expected) = result(vectors.rows), result(None)
    assert expected.abs().max() > 1e-3
    # float32, a sum in another order.
    torch.testing.assert_close(shared, apart, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "tokens"),
    [("apart", 9), ("inner", 13), ("equal", 7)],
)
def test_tokens_are_computed_once(tiny_backbone: Backbone, names: str, tokens: int) -> None:
    """Class names, the template's full stop and EOT, each once per beginning."""
    plan = plan_sequences(
        tiny_backbone.tokenizer, NAME_LISTS[names], "a photo of a {}.", context_length=32, n_ctx=4
    )
    vectors = PlanVectors(plan, tiny_backbone.token_embedding)
    assert len(vectors.rows.tokens) == tokens
