"""Preprocess an image: file bytes -> RGB -> pixels. Training and serving share this code.

Unusual images:

* EXIF orientation is applied; unreadable EXIF is ignored.
* Transparent pixels (RGBA, LA, a palette with transparency) are composited on white.
* CMYK, palette, gray and 16-bit images are converted to 8-bit RGB; 16-bit gray is scaled, not
  clipped.
* Of an animation or a file with several pages, the first frame is used.
* Color profiles (ICC) are ignored, as they were when the backbones were trained.
* The size limit applies to the *declared* size, before any pixel is decoded.
"""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prompt_serve.errors import ImageInvalid, ImageTooLarge
from prompt_serve.types import PixelArray

MAX_IMAGE_PIXELS = 50_000_000
# The image tower sees the middle square only, so the ends of longer strips are cut off first.
MAX_ASPECT = 16
# Pillow knows dozens of formats, some of which start other programs or decode slowly (EPS, FPX...).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # MPO opens as JPEG

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing that a backbone was trained with. The image graph applies mean and std."""

    image_size: int = 224  # S, side of the square that the image tower sees, in pixels
    mean: tuple[float, float, float]  # per channel, of pixels scaled to 0..1
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    Raises:
        ImageTooLarge: the file declares more than ``max_pixels`` pixels; nothing was decoded.
        ImageInvalid: the file is not an image in a known format, or is damaged.
    """
    if not data:
        raise ImageInvalid("The image is empty (0 bytes). Send the bytes of an image file.")
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLarge(
                    f"The image declares {width} x {height} = {width * height:,} pixels; "
                    f"at most {max_pixels:,} are accepted. Scale it down first: the model "
                    f"sees a square of a few hundred pixels.",
                    width=width,
                    height=height,
                    max_pixels=max_pixels,
                )
            return to_rgb(image)
    except (ImageTooLarge, ImageInvalid):
        raise
    except UnidentifiedImageError as error:
        raise ImageInvalid(
            f"The {len(data):,} bytes are not an image in a format we read "
            f"({', '.join(IMAGE_FORMATS)})."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"The image is too large to be decoded safely: {error}") from error
    # Pillow's decoders raise many kinds of errors on damaged files.
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, EOFError) as error:
        raise ImageInvalid(f"The image is damaged or cut short: {error}") from error
    except (OverflowError, ZeroDivisionError, AttributeError, RuntimeError) as error:
        raise ImageInvalid(f"The image is damaged: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB: orientation applied, transparency on white."""
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unreadable EXIF is ignored, as image viewers do."""
    image.load()  # first, so that damaged pixels are not mistaken for unreadable EXIF
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return image


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    elif image.mode.startswith("I;16"):
        top = 65_535.0  # even if every pixel is dark
    else:
        top = 255.0 if values.max(initial=0) <= 255 else 65_535.0
    return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> PixelArray:
    """Resize and crop an RGB image to the square the image tower sees.

    The filters are Pillow's, because the backbones were trained on images resized this way; other
    filters, such as OpenCV's bicubic without antialiasing, give other pixels. Sizes and crop
    offsets are rounded as torchvision does (``Resize`` of the short side, then ``CenterCrop``).

    Returns:
        (S, S, 3) uint8.
    """
    size = preprocessing.image_size
    resample = RESAMPLING[preprocessing.interpolation]
    if preprocessing.resize_mode == "squash":
        return np.asarray(image.resize((size, size), resample), dtype=np.uint8)
    image = _cut_long_side(image)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    new_size = (size, scaled) if width <= height else (scaled, size)
    if new_size != image.size:
        image = image.resize(new_size, resample)
    left = round((image.width - size) / 2.0)
    top = round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)


def _cut_long_side(image: Image.Image) -> Image.Image:
    """Crop a strip to its middle: resizing 1 x 1,000,000 pixels whole would exhaust the memory."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    if left == top == 0:
        return image
    return image.crop((left, top, width - left, height - top))


def pixels_from_bytes(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int = MAX_IMAGE_PIXELS
) -> PixelArray:
    """Decode an image file, then resize and crop it: (S, S, 3) uint8."""
    return to_pixels(decode_image(data, max_pixels=max_pixels), preprocessing)
