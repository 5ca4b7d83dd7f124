"""Deep vectors, keys and values of the text tower against a padded tower written out by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import default_bpe
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.prompts.sequences import plan_sequences
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.training.clip.text_tower import PlanVectors, TextTower
from tests.training import by_hand

NAMES = ("cat", "Yorkshire terrier", "a very long name of a kind of thing")
LENGTH, WIDTH, M = 24, 32, 2
# float32, sums in another order: 5e-7 measured; a vector in a wrong place is off by 1e-2.
TOLERANCE = 1e-5


def clip_of(**text_cfg: Any) -> open_clip.CLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(
            embed_dim=24,
            vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
            text_cfg={
                "context_length": LENGTH,
                "vocab_size": 49408,
                "width": WIDTH,
                "heads": 2,
                "layers": 2,
                **text_cfg,
            },
        )
        torch.nn.init.normal_(clip.token_embedding.weight)
    return clip.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def causal() -> open_clip.CLIP:
    return clip_of()


@pytest.fixture(scope="module")
def full() -> open_clip.CLIP:
    return clip_of(no_causal_mask=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_merges(Path(default_bpe()))


def rows(*counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, WIDTH, generator=generator) for n in counts]


def by_hand_features(
    clip: open_clip.CLIP,
    tokenizer: Tokenizer,
    context: Tensor | None,
    deeper: Sequence[Tensor] = (),
    keys_values: Sequence[Tensor | None] = (None, None),
    hidden_rows: Sequence[int] = (),
) -> Tensor:
    """(C, E): every class on its own, padded to the full length; "a photo of a {}." of which the
    first M words are replaced, at the input and again at the second block."""
    features = []
    for name in NAMES:
        ids = tokenizer.encode(f"a photo of a {name}.")
        ids = [tokenizer.start_id, *ids, tokenizer.end_id]
        eot = len(ids) - 1
        ids += [0] * (LENGTH - len(ids))
        x = clip.token_embedding.weight[torch.tensor(ids)].clone()
        if context is not None:
            x = torch.cat([x[:1], context, x[1 + M :]])
        x = x + clip.positional_embedding
        for index, layer in enumerate(clip.transformer.resblocks):
            if index == 1 and deeper:
                x = torch.cat([x[:1], deeper[0], x[1 + M :]])
            own = keys_values[index]
            n = 0 if own is None else len(own)
            seen = torch.ones(LENGTH, n + LENGTH, dtype=torch.bool)
            if clip.attn_mask is not None:
                seen[:, n:] = torch.ones(LENGTH, LENGTH).tril().bool()
            if index == 0:
                seen[:, list(hidden_rows)] = False
            x = by_hand.block(layer, x, own, seen)
        features.append(by_hand.norm(x[eot], clip.ln_final) @ clip.text_projection)
    return F.normalize(torch.stack(features), dim=-1)


def tower_features(
    clip: open_clip.CLIP,
    tokenizer: Tokenizer,
    context: Tensor | None,
    deeper: Sequence[Tensor] = (),
    keys_values: Sequence[Tensor] = (),
) -> Tensor:
    tower = TextTower(clip)
    plan = plan_sequences(
        tokenizer,
        NAMES,
        "a photo of a {}.",
        context_length=LENGTH,
        n_ctx=None if context is None else M,
        causal=tower.causal,
    )
    features: Tensor = tower(
        *PlanVectors(plan, clip.token_embedding.weight)(context), deeper, keys_values
    )
    return features


@pytest.mark.parametrize("tower", ["causal", "full"])
def test_deep_vectors_stand_in_places_1_to_m_of_each_block(
    tower: str, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    """With the prefix computed once for all classes (causal), and with nothing shared (full)."""
    clip = request.getfixturevalue(tower)
    target = torch.randn(24, generator=torch.Generator().manual_seed(3))
    results = []
    for compute in (tower_features, by_hand_features):
        vectors = [v.requires_grad_() for v in rows(M, M)]
        features = compute(clip, tokenizer, vectors[0], vectors[1:])
        gradients = torch.autograd.grad((features @ target).sum(), vectors)
        results.append((features.detach(), gradients))

    (features, gradients), (expected, wanted) = results
    assert all(float(gradient.abs().max()) > 1e-3 for gradient in wanted)
    torch.testing.assert_close(features, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(gradients, wanted, atol=TOLERANCE, rtol=0)
    shallow = tower_features(clip, tokenizer, vectors[0].detach())
    assert float((features - shallow).abs().max()) > 1e-2  # the second block's do something


@pytest.mark.parametrize("tower", ["causal", "full"])
def test_keys_and_values_are_seen_by_every_position(
    tower: str, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    clip = request.getfixturevalue(tower)
    own = rows(3, 2)
    features = tower_features(clip, tokenizer, None, keys_values=own)
    expected = by_hand_features(clip, tokenizer, None, keys_values=own)
    torch.testing.assert_close(features, expected, atol=TOLERANCE, rtol=0)


def test_a_row_left_out_is_a_row_masked_and_not_a_row_of_zeros(
    causal: open_clip.CLIP, tokenizer: Tokenizer
) -> None:
    first, second = rows(3, 2)
    kept = torch.stack([first[0], first[2]])
    without = tower_features(causal, tokenizer, None, keys_values=[kept, second])
    masked = by_hand_features(causal, tokenizer, None, (), [first, second], hidden_rows=[1])
    torch.testing.assert_close(without, masked, atol=TOLERANCE, rtol=0)
    zeroed = first * torch.tensor([[1.0], [0.0], [1.0]])
    with_zeros = tower_features(causal, tokenizer, None, keys_values=[zeroed, second])
    assert float((without - with_zeros).abs().max()) > 1e-3
