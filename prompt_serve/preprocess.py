"""Bytes of an image file -> RGB -> pixels. The ONE preprocessing, used by training and by serving.

What happens to unusual images, decided once for both sides:

* EXIF orientation is applied; EXIF that cannot be read is passed over.
* Transparent pixels (RGBA, LA, a palette with transparency) are laid on white.
* CMYK, palette, gray and 16-bit images are converted to 8-bit RGB; 16-bit gray is scaled, not cut.
* An animated file, or one of several pages, is its first frame.
* Color profiles (ICC) are passed over: what the backbones were trained on was read so.
* A file is refused by its *declared* size before any pixel is decoded.
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
# Only the middle square is seen; of longer strips the ends are cut off before resizing.
MAX_ASPECT = 16
# Pillow knows dozens of formats, some of which start other programs or decode slowly (EPS, FPX...).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # MPO opens as JPEG

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a backbone wants its pixels. Normalization itself happens inside the image graph."""

    image_size: int = 224  # S, side of the square the image tower sees, in pixels
    mean: tuple[float, float, float]  # per channel, of pixels scaled to 0..1
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    Raises:
        ImageTooLarge: it declares more than ``max_pixels`` pixels; nothing was decoded.
        ImageInvalid: it is not an image of a known format, or it is damaged.
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
                    f"sees a few hundred pixels a side.",
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
    # Pillow's decoders raise whatever they stumble over in a damaged file.
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, EOFError) as error:
        raise ImageInvalid(f"The image is damaged or cut short: {error}") from error
    except (OverflowError, ZeroDivisionError, AttributeError, RuntimeError) as error:
        raise ImageInvalid(f"The image is damaged: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: orientation applied, transparency on white."""
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is where that cannot be read, as viewers do."""
    image.load()  # what is wrong with the pixels is not taken for a fault of the EXIF
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return image


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    elif image.mode.startswith("I;16"):
        top = 65_535.0  # also where all of it is dark
    else:
        top = 255.0 if values.max(initial=0) <= 255 else 65_535.0
    return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> PixelArray:
    """Resize and crop an RGB image to the square the image tower sees.

    Pillow's filters on purpose: the backbones were trained on images resized this way, and
    others (OpenCV's bicubic, which does not antialias) give other pixels. The rounding of sizes
    and crop offsets is torchvision's (``Resize`` of the short side, then ``CenterCrop``).

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
    """Keep the middle of a strip: scaled up whole, 1 x 1,000,000 pixels would fill the memory."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    if left == top == 0:
        return image
    return image.crop((left, top, width - left, height - top))


def pixels_from_bytes(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int = MAX_IMAGE_PIXELS
) -> PixelArray:
    """``decode_image`` then ``to_pixels``: (S, S, 3) uint8 from the bytes of an image file."""
    return to_pixels(decode_image(data, max_pixels=max_pixels), preprocessing)
