"""Plain and augmented views of an image: serving sees the plain one, training the augmented ones.

An augmented view is a random crop, resized with bicubic resampling. ``crops`` are CoOp's:
``RandomResizedCrop(S, scale=(0.08, 1))``, then a horizontal flip in half of the cases. ``light``
ones keep most of the image, do not stretch it much and do not flip it, for classes that depend on
orientation or on the whole image. Random numbers come from the image's digest, the index of the
view and the seed, so a view does not depend on what was drawn before it.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from prompt_serve.preprocess import RESAMPLING, Preprocessing
from prompt_serve.types import PixelArray

Augmentation = Literal["light", "crops"]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Distribution of random crops."""

    area: tuple[float, float]  # share of the image's area
    ratio: tuple[float, float]  # width to height
    flips: bool  # in half of the cases


CROPS: dict[Augmentation, Crop] = {
    "light": Crop(area=(0.6, 1.0), ratio=(0.9, 1 / 0.9), flips=False),
    "crops": Crop(area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flips=True),
}
_ATTEMPTS = 10  # as in torchvision; after that, a center crop


def make_views(
    image: Image.Image,
    preprocessing: Preprocessing,
    *,
    digest: str,
    views: int,
    seed: int,
    augmentation: Augmentation = "crops",
) -> PixelArray:
    """Return the augmented views of an image.

    Args:
        image: RGB.
        preprocessing: of the backbone.
        digest: sha256 of the image file, in hexadecimal.
        views: K, at least 1.
        seed: random seed of the views.
        augmentation: kind of random crops.

    Returns:
        (K, S, S, 3) uint8.
    """
    return np.stack(
        [
            augmented_view(
                image, preprocessing, view_generator(digest, index, seed), CROPS[augmentation]
            )
            for index in range(views)
        ]
    )


def decoded_side(
    preprocessing: Preprocessing, views: int, augmentation: Augmentation
) -> int | None:
    """Return the shortest side at which an image is decoded for its views; None: full size.

    The smallest crop then has as many pixels as the plain view at least.
    """
    side, crop = preprocessing.decoded_side, CROPS[augmentation]
    if side is None or not views:
        return side
    return math.ceil(side / math.sqrt(crop.area[0] * crop.ratio[0]))


def view_generator(digest: str, index: int, seed: int) -> np.random.Generator:
    """Return the random generator of one view of one image."""
    name = hashlib.sha256(f"{digest} {index} {seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(name[:16], "little")))


def augmented_view(
    image: Image.Image,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    crop: Crop = CROPS["crops"],
) -> PixelArray:
    """Return a random crop, resized to (S, S, 3) uint8."""
    size = preprocessing.image_size
    box = _random_box(image.width, image.height, rng, crop)
    view = image.crop(box).resize((size, size), RESAMPLING[preprocessing.interpolation])
    pixels = np.asarray(view, dtype=np.uint8)
    return pixels[:, ::-1] if crop.flips and rng.random() < 0.5 else pixels


def _random_box(
    width: int, height: int, rng: np.random.Generator, crop: Crop
) -> tuple[int, int, int, int]:
    """Return a crop: left, top, right, bottom (torchvision's ``RandomResizedCrop.get_params``)."""
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*crop.area)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            top = int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return _center_box(width, height, crop)


def _center_box(width: int, height: int, crop: Crop) -> tuple[int, int, int, int]:
    w, h = width, height
    if width / height < crop.ratio[0]:
        h = round(width / crop.ratio[0])
    elif width / height > crop.ratio[1]:
        w = round(height * crop.ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
