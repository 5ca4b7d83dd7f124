"""Prompts and images that tests of the service upload."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    ImageEncoding,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
    TextEncoding,
)
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.types import HalfArray

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone

TEMPLATE = "a photo of a {}."
N_CTX = 4  # tokens of "a photo of a"


def learned_prompt(
    backbone: "Backbone", class_names: Sequence[str], *, seed: int = 0, dense: bool = False
) -> Prompt:
    """Return a prompt with random numbers and the probe that PyTorch computes for them."""
    numbers = Numbers(seed)
    width = backbone.ref.text_width
    text: TextEncoding = LowRank(p_a=numbers(N_CTX, 1), p_b=numbers(1, width))
    if dense:
        text = Dense(context=numbers(len(class_names), N_CTX, width))
    return probed(
        unprobed(backbone, class_names, text, method="coop" if dense else "dip"), backbone
    )


def unprobed(
    backbone: "Backbone",
    class_names: Sequence[str],
    text: TextEncoding | None,
    image: ImageEncoding | None = None,
    *,
    method: str = "by-hand",
) -> Prompt:
    return Prompt(
        name="learned",
        method=method,
        class_names=tuple(class_names),
        templates=(TEMPLATE,),
        backbone=backbone.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),
        text=text,
        image=image,
    )


def probed(prompt: Prompt, backbone: "Backbone") -> Prompt:
    from prompt_serve.training.evaluate import probed_features  # needs torch

    return replace(prompt, probe=probe(probed_features(prompt, backbone)))


class Numbers:
    """Random float16 numbers of any shape."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> HalfArray:
        return (0.5 * self._rng.standard_normal(shape)).astype(np.float16)

    def coded(self, *shape: int) -> QuantizedTensor:
        indices = self._rng.integers(0, 4, shape, dtype=np.uint8)
        return QuantizedTensor(indices=indices, codebook=self(4))


def ragged(numbers: Numbers, width: int, *lengths: int) -> PrunedKeyValues:
    return PrunedKeyValues(
        lengths=np.asarray(lengths, dtype=np.uint8), rows=numbers(sum(lengths), width)
    )


def deep_text(width: int) -> dict[str, TextEncoding]:
    """Text prompts that reach into the second of two blocks."""
    numbers = Numbers()
    first = LowRank(p_a=numbers(N_CTX, 1), p_b=numbers(1, width))
    second = LowRank(p_a=numbers(N_CTX, 1), p_b=numbers(1, width), base="none")
    coded = (Dense(context=numbers.coded(N_CTX, width)) for _ in range(2))
    return {
        "deep DIP": Deep(layers=(first, second)),
        # As in MaPLe: two vectors stand for "a photo", and "of a" stays.
        "deep CoOp": Deep(
            layers=(Dense(context=numbers(2, width)), Dense(context=numbers(2, width)))
        ),
        "deep QCoOp": Deep(layers=tuple(coded)),
        "ADAPT": ragged(numbers, width, 2, 5),
        "ADAPT, one block pruned": ragged(numbers, width, 3, 0),
        "ADAPT, all pruned": ragged(numbers, width, 0, 0),
    }


def image_prompts(
    width: int, image_width: int
) -> dict[str, tuple[TextEncoding | None, ImageEncoding]]:
    """Text and image encodings of prompts with vectors of an image tower of two blocks."""
    numbers = Numbers(1)
    rows = tuple(Dense(context=numbers(2, image_width)) for _ in range(2))
    dense = Dense(context=numbers(N_CTX, width))
    projection = Projection(factors=(numbers(width, image_width),), bias=numbers(image_width))
    low_rank = LowRank(p_a=numbers(3, 1), p_b=numbers(1, image_width), base="none")
    return {
        "VPT": (None, rows[0]),
        "deep VPT": (None, Deep(layers=rows)),
        "ADAPT of both branches": (
            ragged(numbers, width, 1, 2),
            ragged(numbers, image_width, 2, 0),
        ),
        "MaPLe": (dense, Projected(layers=(projection,))),
        "IVLP": (dense, Deep(layers=rows[::-1])),
        "DIP of the image branch": (None, low_rank),
    }


def conditional(width: int, embed_dim: int) -> Conditional:
    """Encoding of a prompt whose class features depend on the image (CoCoOp)."""
    numbers = Numbers(1)
    return Conditional(
        context=numbers(N_CTX, width),
        w_1=numbers(3, embed_dim),
        b_1=numbers(3),
        w_2=numbers(width, 3),
        b_2=numbers(width),
    )


def picture(seed: int = 0, *, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """Return an image file of random colors."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def bomb(side: int = 12_000) -> bytes:
    """Return a PNG of a few kilobytes that declares ``side`` x ``side`` pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()
