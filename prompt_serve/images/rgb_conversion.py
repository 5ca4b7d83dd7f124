"""Convert any Pillow image to 8-bit RGB: orientation applied, transparency composited on white.

Everything is done in bands of rows, each as if the image had no others: the only whole images in
memory are the one given and the one returned.
"""

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

Box = tuple[float, float, float, float]  # left, top, right, bottom

UPRIGHT = 1
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = range(2, 9)
_BAND_PIXELS = 2**20


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB; returns the image itself if it is that already."""
    return upright_to_rgb(upright(image)[0])


def upright_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image whose orientation was applied to 8-bit RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _scale_to_8_bit(image)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Apply the EXIF orientation, and return it; unreadable EXIF is ignored, as viewers do."""
    image.load()  # first, so that damaged pixels are not mistaken for unreadable EXIF
    try:
        # Pillow copies an image that is upright already.
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation not in _TURNED:
            return image, UPRIGHT
        return ImageOps.exif_transpose(image), int(orientation)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return image, UPRIGHT


def turned_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return a box of an image as stored in the upright image.

    Args:
        box: left, top, right, bottom.
        size: width and height of the image as stored.
        orientation: as ``upright`` returns it.
    """
    left, top, right, lower = box
    if orientation in (2, 3, 7, 8):  # left and right change places
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):  # top and bottom do
        top, lower = size[1] - lower, size[1] - top
    return (top, left, lower, right) if orientation >= 5 else (left, top, right, lower)


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, band in bands(image):
        rgba = band.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, rgba).convert("RGB"), (0, top))
    return rgb


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        white = 65_535.0  # even if every pixel is dark
    else:
        largest = np.max([_values(band).max(initial=0.0) for _, band in bands(image)])
        if image.mode == "F":
            white = 1.0 if largest <= 1.0 else 255.0
        else:
            white = 255.0 if largest <= 255 else 65_535.0
    gray = Image.new("L", image.size)
    for top, band in bands(image):
        levels = np.clip(_values(band) * (255.0 / white), 0, 255).round()
        gray.paste(Image.fromarray(levels.astype(np.uint8)), (0, top))
    return gray


def _values(band: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(band, dtype=np.float64)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield bands of rows, each with the number of its first row."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))
