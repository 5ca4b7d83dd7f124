"""Images and names for parity checks: noise, drawn shapes, and the package's sample images."""

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import Ignored, find_images
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes, to_pixels
from prompt_serve.types import IntArray, PixelArray

NAMES = (
    "cat",
    "Yorkshire terrier",
    "red-winged blackbird",
    "café crème brûlée",
    "Bücherregal",
    "O'Neill's sofa",
    "1984 Toyota MR2",
    "☂ umbrella",
    "a very long name of an unusually specific kind of thing",
)
TEMPLATES = ("a photo of a {}.", "{}")

CALIBRATION_IMAGES = 96
_CANVAS = 96  # side of a drawing in pixels, before preprocessing


def random_pixels(preprocessing: Preprocessing, *, count: int) -> PixelArray:
    """Generate noise (count, S, S, 3), different in every channel and at every position."""
    size = preprocessing.image_size
    shape = (count, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def sample_pixels(preprocessing: Preprocessing, *, count: int, first: int = 0) -> PixelArray:
    """Load up to ``count`` of the package's sample images, evenly spread from ``first``."""
    folder = Path(str(resources.files("prompt_serve") / "assets" / "emoji"))
    paths = sorted(folder.glob("*/*/*.png"))
    chosen = paths[first :: max(1, len(paths) // count)][:count]
    pixels = [pixels_from_bytes(path.read_bytes(), preprocessing) for path in chosen]
    size = preprocessing.image_size
    return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), dtype=np.uint8)


def calibration_pixels(preprocessing: Preprocessing, folder: Path | None) -> PixelArray:
    """Load images to fix the scales of activations with: (N, S, S, 3).

    Half of them are sample images and drawings in any case, so that a folder of similar images
    leaves no others out of the scales. None of them is an image of the parity checks.

    Args:
        preprocessing: preprocessing of the backbone.
        folder: the user's images, of which up to ``CALIBRATION_IMAGES`` are taken, evenly spread;
            None: no more than the package's.

    Raises:
        DatasetInvalid: there is no image in the folder.
        InputRejected: one of them cannot be read.
    """
    half = CALIBRATION_IMAGES // 2
    drawn, _ = drawn_pixels(preprocessing, classes=half, count=1, seed=1)
    shipped = np.concatenate([sample_pixels(preprocessing, count=half, first=5), drawn])
    if folder is None:
        return shipped
    paths = find_images(folder, Ignored())
    if not paths:
        raise DatasetInvalid(f"There are no images in {folder}, which --calibrate names.")
    chosen = paths[:: max(1, len(paths) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    own = [pixels_from_bytes(path.read_bytes(), preprocessing) for path in chosen]
    return np.concatenate([np.stack(own), shipped])


def drawn_pixels(
    preprocessing: Preprocessing, *, classes: int, count: int, seed: int = 0
) -> tuple[PixelArray, IntArray]:
    """Draw two colored shapes on a background, with small variations within a class.

    Args:
        preprocessing: preprocessing of the backbone.
        classes: number of classes.
        count: number of drawings per class.
        seed: of the drawings.

    Returns:
        Pixels (classes * count, S, S, 3) and labels (classes * count,).
    """
    rng = np.random.default_rng(seed)
    pixels = []
    for _ in range(classes):
        colors, corners = rng.integers(0, 256, size=(3, 3)), rng.integers(8, 56, size=(2, 2))
        for _ in range(count):
            drawing = _draw(
                np.clip(colors + rng.integers(-20, 21, size=(3, 3)), 0, 255),
                corners + rng.integers(-6, 7, size=(2, 2)),
            )
            pixels.append(to_pixels(drawing, preprocessing))
    return np.stack(pixels), np.repeat(np.arange(classes), count)


def _draw(colors: IntArray, corners: IntArray) -> Image.Image:
    ground, ellipse, bar = (tuple(map(int, color)) for color in colors)
    image = Image.new("RGB", (_CANVAS, _CANVAS), ground)
    (x, y), (u, v) = corners.tolist()
    draw = ImageDraw.Draw(image)
    draw.ellipse((x, y, x + 40, y + 32), fill=ellipse)
    draw.rectangle((u, v, u + 14, v + 40), fill=bar)
    return image
