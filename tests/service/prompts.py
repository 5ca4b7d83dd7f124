"""Prompts and images that tests of the service upload."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from prompt_serve.encodings import Dense, LowRank
from prompt_serve.probe import probe
from prompt_serve.prompt_file import Prompt
from prompt_serve.training.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of

TEMPLATE = "a photo of a {}."
N_CTX = 4  # tokens of "a photo of a"


def learned_prompt(
    backbone: Backbone, class_names: Sequence[str], *, seed: int = 0, dense: bool = False
) -> Prompt:
    """As if learned: random numbers, and the probe that PyTorch computes for them."""
    rng = np.random.default_rng(seed)
    width = backbone.ref.text_width

    def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        return (0.5 * rng.standard_normal(shape)).astype(np.float16)

    text: Dense | LowRank = LowRank(p_a=numbers(N_CTX, 1), p_b=numbers(1, width))
    if dense:
        text = Dense(context=numbers(len(class_names), N_CTX, width))
    unprobed = Prompt(
        name="learned",
        method="coop" if dense else "dip",
        class_names=tuple(class_names),
        templates=(TEMPLATE,),
        backbone=backbone.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),
        text=text,
    )
    return probed(unprobed, backbone)


def probed(prompt: Prompt, backbone: Backbone) -> Prompt:
    return replace(prompt, probe=probe(class_features_of(prompt, backbone)))


def picture(seed: int = 0, *, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """An image file of random colours."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def bomb(side: int = 12_000) -> bytes:
    """A PNG of a few kilobytes that declares ``side`` x ``side`` pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()
