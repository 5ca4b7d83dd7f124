"""Draw k images per class, exactly as CoOp does, so that results can be compared.

CoOp calls ``random.seed(seed)`` and then, for each label in order of first appearance (not
sorted), ``random.sample``: first over the training images, then over the validation images with
k = min(shots, 4), in the same stream of random numbers. (CoOp, datasets/oxford_pets.py and Dassl's
``generate_fewshot_dataset``.)
"""

import random
from dataclasses import replace
from typing import Protocol

from prompt_serve.errors import counted
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split

VAL_SHOTS = 4  # per class, at most


class Sampler(Protocol):
    """Function that draws images from a dataset, such as ``few_shot``."""

    def __call__(self, split: Split, /, *, shots: int, seed: int) -> Split:
        """Return the drawn train and val parts, and the test part unchanged."""


def few_shot(split: Split, *, shots: int, seed: int) -> Split:
    """Draw the training and validation images.

    Without validation images in the source, some are held out of the training images that were
    not drawn: up to four per class, in the same stream. The test images stay as they are.

    Args:
        split: all images.
        shots: images per class; smaller classes give all their images. 0 takes all images (and
            then holds out a fifth of each class, at most four images, where ``val`` is missing).
        seed: random seed.
    """
    rng = random.Random(seed)
    if not shots:
        return split if split.val is not None else _hold_out_first(split, rng)
    train = _draw(split.train, shots, rng)
    k = min(shots, VAL_SHOTS)
    if split.val is not None:
        return replace(split, train=train, val=_draw(split.val, k, rng))
    drawn = set(train.items)
    rest = split.train.with_items(item for item in split.train.items if item not in drawn)
    return replace(split, train=train, val=_draw(rest, k, rng) if rest.items else None)


def without_validation(dataset: Split, drawn: Split, shots: int) -> Split:
    """Return the images that a method learns from which needs none to validate on.

    Args:
        dataset: all images.
        drawn: those that a sampler drew of them.
        shots: training images per class: those that were drawn are taken. 0 takes all images but
            the test images.
    """
    if shots:
        return replace(drawn, val=None)
    given = (*dataset.train.items, *(dataset.val.items if dataset.val else ()))
    return replace(drawn, train=drawn.train.with_items(given), val=None)


def shot_faults(split: Split, shots: int) -> list[str]:
    """Return a line for each class with training images, but fewer than ``shots``."""
    return [
        f"class {split.class_names[label]!r} has {counted(len(items), 'training image')}, fewer "
        f"than {counted(shots, 'shot')} (take all it has with --fewer-shots-ok)"
        for label, items in split.train.by_label().items()
        if len(items) < shots
    ]


def _draw(images: ImageSet, k: int, rng: random.Random) -> ImageSet:
    drawn: list[LabeledImage] = []
    for items in images.by_label().values():
        drawn += rng.sample(items, k) if len(items) >= k else items
    return images.with_items(drawn)


def _hold_out_first(split: Split, rng: random.Random) -> Split:
    held: list[LabeledImage] = []
    for items in split.train.by_label().values():
        held += rng.sample(items, min(VAL_SHOTS, len(items) // 5))
    out = set(held)
    train = split.train.with_items(item for item in split.train.items if item not in out)
    return replace(split, train=train, val=split.train.with_items(held) if held else None)
