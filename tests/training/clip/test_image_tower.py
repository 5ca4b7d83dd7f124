"""The prompted image tower against open_clip's own and against one written out by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnsupported, PromptFileInvalid
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.backbone import Backbone, build_backbone
from prompt_serve.training.clip.image_tower import ImageTower
from prompt_serve.training.clip.source import Source, clip_merges
from prompt_serve.training.config import make_config
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.data.pixels import PixelSet
from prompt_serve.training.loop import fit
from prompt_serve.training.train import train_prompt
from tests.training import by_hand

# float32, sums in another order: 4e-7 measured; a vector in a wrong place is off by 1e-2.
TOLERANCE = 1e-5
WIDTH = 64
M = 3


def clip_of(**vision_cfg: Any) -> open_clip.CLIP:
    """Two layers, random weights; class token and patches differ as they do in a trained tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(
            embed_dim=24,
            vision_cfg={
                "image_size": 32,
                "layers": 2,
                "width": WIDTH,
                "head_width": 32,
                "patch_size": 8,
                **vision_cfg,
            },
            text_cfg={"context_length": 8, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
        )
        for parameter in clip.visual.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.3)
    return clip.eval().requires_grad_(False)


def pixels(n: int = 2, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def rows(*counts: int, seed: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, WIDTH, generator=generator) for n in counts)


def features_by_hand(
    clip: open_clip.CLIP,
    image: Tensor,
    context: Tensor | None = None,
    deeper: Sequence[Tensor] = (),
    keys_values: Sequence[Tensor | None] = (),
    *,
    seen: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """(E,) features of one image (3, 32, 32), before they are scaled to unit length."""
    visual = clip.visual
    kernel = visual.conv1.weight.reshape(WIDTH, -1)
    patches = [
        kernel @ image[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1)
        for y in range(4)
        for x in range(4)
    ]
    x = torch.stack([visual.class_embedding, *patches]) + visual.positional_embedding
    if context is not None:
        x = torch.cat([x, context])
    x = by_hand.norm(x, visual.ln_pre)
    first, second = visual.transformer.resblocks
    own = (*keys_values, None, None)
    x = by_hand.block(first, x, own[0], seen[0])
    if deeper:
        x = torch.cat([x[: 1 + 16], deeper[0]])
    x = by_hand.block(second, x, own[1], seen[1])
    x = by_hand.norm(x, visual.ln_post)
    pooled = x[0] if visual.pool_type == "tok" else x[1 : 1 + 16].mean(0)
    features: Tensor = pooled @ visual.proj
    return features


def all_by_hand(clip: open_clip.CLIP, *args: Any, **kwargs: Any) -> Tensor:
    each = [features_by_hand(clip, image, *args, **kwargs) for image in pixels()]
    return F.normalize(torch.stack(each), dim=-1)


@pytest.mark.parametrize(
    "vision_cfg",
    [
        {},
        {"pool_type": "avg"},
        {"final_ln_after_pool": True, "pool_type": "avg"},
        {"no_ln_pre": True},
        {"ls_init_value": 0.1},
    ],
    ids=str,
)
def test_without_vectors_it_is_encode_image(vision_cfg: dict[str, Any]) -> None:
    clip = clip_of(**vision_cfg)
    expected = clip.encode_image(pixels(), normalize=True)
    torch.testing.assert_close(ImageTower(clip)(pixels()), expected, atol=TOLERANCE, rtol=0)


def test_without_vectors_a_real_geometry_is_encode_image() -> None:
    real = open_clip.get_model_config("ViT-B-32")
    assert real is not None
    clip = clip_of(**{**real["vision_cfg"], "head_width": 64, "layers": 3})
    image = pixels(1, 224)
    expected = clip.encode_image(image, normalize=True)
    torch.testing.assert_close(ImageTower(clip)(image), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pool_type", ["tok", "avg"])
@pytest.mark.parametrize("depth", [1, 2])
def test_vectors_stand_behind_the_patches_and_are_replaced_at_the_next_block(
    depth: int, pool_type: str
) -> None:
    """Features and gradients of shallow and of deep vectors; a tower that averages its patches
    averages those, not the vectors."""
    clip = clip_of(pool_type=pool_type)
    target = torch.randn(24, generator=torch.Generator().manual_seed(3))
    results = []
    for compute in (
        lambda first, *others: ImageTower(clip)(
            pixels(), PromptVectors(context=first, deeper=others)
        ),
        lambda first, *others: all_by_hand(clip, first, others),
    ):
        vectors = [v.requires_grad_() for v in rows(*[M] * depth)]
        features = compute(*vectors)
        gradients = torch.autograd.grad((features @ target).sum(), vectors)
        results.append((features.detach(), gradients))

    (features, gradients), (expected, expected_gradients) = results
    assert all(float(gradient.abs().max()) > 1e-3 for gradient in expected_gradients)
    torch.testing.assert_close(features, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(gradients, expected_gradients, atol=TOLERANCE, rtol=0)
    plain = ImageTower(clip)(pixels())
    assert float((features - plain).abs().max()) > 1e-2  # they do something


def test_keys_and_values_are_seen_by_every_query_of_their_block() -> None:
    clip = clip_of()
    own = rows(2, 3)
    features = ImageTower(clip)(pixels(), PromptVectors(keys_values=own))
    torch.testing.assert_close(features, all_by_hand(clip, keys_values=own), atol=TOLERANCE, rtol=0)


def test_a_row_left_out_is_a_row_masked_and_not_a_row_of_zeros() -> None:
    clip = clip_of()
    first, second = rows(3, 2)
    kept = torch.stack([first[0], first[2]])
    seen = torch.ones(17, 3 + 17, dtype=torch.bool)
    seen[:, 1] = False
    without = ImageTower(clip)(pixels(), PromptVectors(keys_values=(kept, second[:0])))

    masked = all_by_hand(clip, keys_values=(first, None), seen=(seen, None))
    zeroed = first * torch.tensor([[1.0], [0.0], [1.0]])
    with_zeros = ImageTower(clip)(pixels(), PromptVectors(keys_values=(zeroed, second[:0])))
    torch.testing.assert_close(without, masked, atol=TOLERANCE, rtol=0)
    assert float((without - with_zeros).abs().max()) > 1e-3


def test_the_order_of_the_vectors_does_not_matter() -> None:
    """They have no position."""
    clip = clip_of()
    (context,) = rows(M)
    tower = ImageTower(clip)
    forth = tower(pixels(), PromptVectors(context=context))
    back = tower(pixels(), PromptVectors(context=context.flip(0)))
    torch.testing.assert_close(forth, back, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "vectors",
    [
        PromptVectors(context=torch.zeros(2, WIDTH + 1)),
        PromptVectors(context=torch.zeros(2, WIDTH), deeper=(torch.zeros(2, WIDTH),) * 2),
        PromptVectors(keys_values=(torch.zeros(2, WIDTH),)),
    ],
    ids=["too wide", "too deep", "a block missing"],
)
def test_vectors_of_another_tower_are_refused(vectors: PromptVectors[Tensor]) -> None:
    with pytest.raises(PromptFileInvalid, match="the image tower has 2 blocks and is 64 wide"):
        ImageTower(clip_of())(pixels(), vectors)


@pytest.mark.parametrize(
    ("vision_cfg", "what"),
    [
        ({"layers": (1, 1, 1, 1), "width": 8, "head_width": 32}, "is a ModifiedResNet"),
        ({"timm_model_name": "resnet10t", "timm_pool": "avg"}, "is a TimmModel"),
        ({"attentional_pool": True}, "has an attention pool"),
        ({"pool_type": "none"}, "pools by 'none'"),
    ],
    ids=["resnet", "timm", "attention pool", "no pool"],
)
def test_other_image_towers_are_refused_with_a_way_out(
    vision_cfg: dict[str, Any], what: str
) -> None:
    with pytest.raises(BackboneUnsupported, match=what) as caught:
        ImageTower(clip_of(**vision_cfg))
    assert "method 'dip' or 'coop'" in str(caught.value)


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    """A CLIP whose image tower is a small ResNet, as RN50's is a large one."""
    return build_backbone(
        Source(
            id="small-resnet",
            name="small-resnet",
            model_cfg={
                "embed_dim": 24,
                "vision_cfg": {
                    "image_size": 32,
                    "layers": (1, 1, 1, 1),
                    "width": 8,
                    "head_width": 32,
                },
                "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
            },
            preprocess_cfg={"mean": [0.5] * 3, "std": [0.25] * 3},
            merges=clip_merges(),
            read_weights=None,
        )
    )


IMAGE_METHODS = [
    {"method": "vpt"},
    {"method": "ivlp"},
    {"method": "maple"},
    {"method": "dip-maple"},
    {"method": "qmaple"},
    {"method": "dip", "branch": "image"},
]


@pytest.mark.parametrize("settings", IMAGE_METHODS, ids=lambda s: str(s["method"]))
def test_a_resnet_refuses_image_methods(
    resnet: Backbone, colors: Path, settings: dict[str, Any], rng: np.random.Generator
) -> None:
    config = make_config(**settings, shots=2, views=0, epochs=1)
    images = PixelSet(
        pixels=rng.integers(0, 256, (4, 1, 32, 32, 3), dtype=np.uint8), labels=np.arange(4) % 2
    )
    with pytest.raises(BackboneUnsupported, match="'dip' or 'coop'"):
        fit(resnet, ("cat", "dog"), images, None, config, learning_rate=0.1)
    with pytest.raises(BackboneUnsupported, match="'dip' or 'coop'"):
        train_prompt(resnet, read_dataset(colors), config)


@pytest.mark.parametrize("method", ["dip", "coop"])
def test_a_resnet_learns_text_methods(resnet: Backbone, colors: Path, method: str) -> None:
    config = make_config(method=method, shots=2, views=0, epochs=2)
    result = train_prompt(resnet, read_dataset(colors), config)
    assert result.prompt.image is None
    assert result.comparisons["test"].prompt.images == 40
