"""The fast text tower against open_clip's own, padded to the full context length."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import default_bpe
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnsupported
from prompt_serve.prompts.sequences import PAD_ID, SequencePlan, plan_sequences
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.training.clip.text_tower import PlanVectors, TextTower
from prompt_serve.types import ClassPosition

NAMES = ("cat", "Yorkshire terrier", "a very long name of an unusually specific kind of thing")
TEMPLATE = "a photo of a {}."
# float32, sums in another order, twelve layers: 3e-7 measured; a wrong mask is off by 1e-2.
TOLERANCE = 1e-5


def clip_of(layers: int, **text_cfg: object) -> open_clip.CLIP:
    """ViT-B/16's text tower with random weights, and hardly an image tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(
            embed_dim=512,
            vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
            text_cfg={
                "context_length": 77,
                "vocab_size": 49408,
                "width": 512,
                "heads": 8,
                "layers": layers,
                **text_cfg,
            },
        )
    return clip.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    return clip_of(layers=12)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_merges(Path(default_bpe()))


def padded_features(clip: open_clip.CLIP, plan: SequencePlan, context: Tensor) -> Tensor:
    """CoOp's way: all 77 positions of every class, context vectors put in place one by one."""
    rows = np.full((len(plan.suffix), clip.context_length), PAD_ID)
    p, s = len(plan.prefix), plan.suffix.shape[1]
    rows[:, :p], rows[:, p : p + s] = plan.prefix, plan.suffix
    vectors = torch.stack(
        [
            torch.stack(
                [
                    clip.token_embedding.weight[place]
                    if place >= 0
                    else (context if context.ndim == 2 else context[c])[~place]
                    for place in row.tolist()
                ]
            )
            for c, row in enumerate(rows)
        ]
    )
    x = clip.transformer(vectors + clip.positional_embedding, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)[torch.arange(len(rows)), torch.from_numpy(plan.eot) + p]
    return F.normalize(x @ clip.text_projection, dim=-1)


def plan_and_context(
    tokenizer: Tokenizer, position: ClassPosition, *, class_specific: bool, causal: bool = True
) -> tuple[SequencePlan, Tensor]:
    plan = plan_sequences(
        tokenizer,
        NAMES,
        TEMPLATE,
        context_length=77,
        n_ctx=4,
        class_position=position,
        class_specific=class_specific,
        causal=causal,
    )
    shape = (len(NAMES), 4, 512) if class_specific else (4, 512)
    return plan, 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("position", "class_specific"),
    [("end", False), ("middle", False), ("front", False), ("end", True)],
)
def test_features_and_gradients_are_those_of_the_padded_tower(
    clip: open_clip.CLIP, tokenizer: Tokenizer, position: ClassPosition, class_specific: bool
) -> None:
    plan, start = plan_and_context(tokenizer, position, class_specific=class_specific)
    target = F.normalize(torch.randn(512, generator=torch.Generator().manual_seed(2)), dim=-1)
    results = []
    for compute in (
        lambda c: TextTower(clip)(*PlanVectors(plan, clip.token_embedding.weight)(c)),
        lambda c: padded_features(clip, plan, c),
    ):
        context = start.clone().requires_grad_()
        features = compute(context)
        loss = F.cross_entropy((features @ target)[None], torch.tensor([0]))
        results.append((features.detach(), torch.autograd.grad(loss, context)[0]))

    (fast, fast_gradient), (padded, gradient) = results
    assert gradient.abs().max() > 1e-3  # there is something to compare
    torch.testing.assert_close(fast, padded, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(fast_gradient, gradient, atol=TOLERANCE, rtol=0)


def test_words_give_the_features_of_encode_text(clip: open_clip.CLIP, tokenizer: Tokenizer) -> None:
    plan = plan_sequences(tokenizer, NAMES, TEMPLATE, context_length=77)
    ids = open_clip.tokenize([TEMPLATE.replace("{}", name) for name in NAMES])

    fast = TextTower(clip)(*PlanVectors(plan, clip.token_embedding.weight)(None))

    torch.testing.assert_close(fast, clip.encode_text(ids, normalize=True), atol=TOLERANCE, rtol=0)


def test_a_tower_that_is_not_causal_reads_everything(tokenizer: Tokenizer) -> None:
    clip = clip_of(layers=2, no_causal_mask=True)
    tower = TextTower(clip)
    plan, context = plan_and_context(tokenizer, "end", class_specific=False, causal=tower.causal)

    assert not tower.causal
    torch.testing.assert_close(
        tower(*PlanVectors(plan, clip.token_embedding.weight)(context)),
        padded_features(clip, plan, context),
        atol=TOLERANCE,
        rtol=0,
    )


def test_a_tower_that_pools_elsewhere_is_refused() -> None:
    with pytest.raises(BackboneUnsupported, match="pools by 'last'"):
        TextTower(clip_of(layers=1, pool_type="last"))
