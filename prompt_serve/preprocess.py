"""Preprocess an image: file bytes -> RGB -> pixels. Training and serving share this code.

Unusual images:

* EXIF orientation is applied; unreadable EXIF is ignored.
* Transparent pixels (RGBA, LA, a palette with transparency) are composited on white.
* CMYK, palette, gray and 16-bit images are converted to 8-bit RGB; 16-bit gray is scaled, not
  clipped.
* Of an animation or a file with several pages, the first frame is used.
* Color profiles (ICC) are ignored, as they were when the backbones were trained; so are texts, of
  any size.
* A JPEG that lacks its last bytes is read if all but the last of its rows are there.
* HEIC is read where ``pillow-heif`` is installed.
* The size limit applies to the *declared* size, before any pixel is decoded. It is the same
  everywhere: ``PROMPT_SERVE_MAX_IMAGE_PIXELS``.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from prompt_serve.errors import ConfigInvalid, ImageInvalid, ImageTooLarge
from prompt_serve.images.rgb_conversion import bands, to_rgb
from prompt_serve.types import PixelArray

MAX_IMAGE_PIXELS = 50_000_000
MAX_IMAGE_PIXELS_VARIABLE = "PROMPT_SERVE_MAX_IMAGE_PIXELS"
# The image tower sees the middle square only, so the ends of longer strips are cut off first.
MAX_ASPECT = 16
# Pillow knows dozens of formats, some of which start other programs or decode slowly (EPS, FPX...).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # MPO opens as JPEG
HEIF_WAY_OUT = "to read HEIC: pip install 'prompt-serve[heif]'"
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # of segments that have a length
_JPEG_END = b"\xff\xd9"
# Some coefficients, and after each restart marker some more: a file may end before a marker.
_OTHER_BYTES = b"".join(b"\xb5\xd3\x6e" * 50 + b"\xff%c" % code for code in range(0xD0, 0xD8))
# Rows of the last blocks of a JPEG, and two that the interpolation of colors reaches.
_LAST_ROWS = 18

# Decoders of Pillow that run in Python, and the largest images that they may be given.
_SLOW_FORMS = {"ppm_plain": "a plain (text) PPM, PGM or PBM", "bmp_rle": "a run-length encoded BMP"}
_MAX_SLOW_PIXELS = 500_000
_MAX_SLOW_BYTES = 2 * 2**20
# Memory at the peak of decoding, measured by benchmarks/decoding_memory.py; a pixel of Pillow's RGB
# has 4 bytes, and a turned or composited image is there twice.
_BYTES_PER_PIXEL = {"JPEG": 12, "PNG": 16, "WEBP": 22, "GIF": 10, "BMP": 16, "PPM": 12}
_MOST_BYTES_PER_PIXEL = 24  # TIFF, AVIF, HEIF
_PROGRESSIVE_BYTES_PER_PIXEL = 20  # JPEG: all coefficients are in memory
_FIXED_BYTES = 2**20

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


def max_image_pixels() -> int:
    """Return the maximum number of pixels per image: the service's setting, read anew.

    Raises:
        ConfigInvalid: the variable is not a positive whole number.
    """
    value = os.environ.get(MAX_IMAGE_PIXELS_VARIABLE)
    if value is None:
        return MAX_IMAGE_PIXELS
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ConfigInvalid(
            f"{MAX_IMAGE_PIXELS_VARIABLE}={value!r} is invalid; expected a number of pixels, "
            f"such as 200000000."
        )
    return int(value)


def decode_image(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    Args:
        data: content of the file.
        max_pixels: maximum number of pixels; None: ``max_image_pixels()``.

    Raises:
        ImageTooLarge: the file declares more than ``max_pixels`` pixels, or more than are accepted
            in a form that is slow to decode; nothing was decoded.
        ImageInvalid: the file is not an image in a known format, or is damaged.
    """
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    with _image_errors(data):
        return _decode(data, max_pixels)


def decoding_bytes(data: bytes, *, max_pixels: int | None = None) -> int:
    """Return the memory that decoding an image file takes at most, from its declared size.

    Raises:
        ImageTooLarge, ImageInvalid: as ``decode_image``, as far as the header shows it.
    """
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    with _image_errors(data), _opened(data, max_pixels) as image:
        width, height = image.size
        per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _MOST_BYTES_PER_PIXEL)
        if "progressive" in image.info:
            per_pixel = _PROGRESSIVE_BYTES_PER_PIXEL
        return _FIXED_BYTES + width * height * per_pixel


@contextmanager
def _image_errors(data: bytes) -> Iterator[None]:
    """Turn the errors of Pillow into ours."""
    if not data:
        raise ImageInvalid("The image is empty (0 bytes). Send the bytes of an image file.")
    try:
        yield
    except (ImageTooLarge, ImageInvalid):
        raise
    except UnidentifiedImageError as error:
        if _is_heif(data):
            raise ImageInvalid(
                "The HEIC image is damaged or cut short."
                if reads_heif()
                else f"The image is HEIC, which cannot be read here; {HEIF_WAY_OUT}, where images "
                f"are decoded."
            ) from error
        raise ImageInvalid(
            f"The {len(data):,} bytes are not an image in a format we read "
            f"({', '.join(IMAGE_FORMATS)})."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            f"The image is too large to be decoded safely: {error} Scale it down first, or raise "
            f"{MAX_IMAGE_PIXELS_VARIABLE} where images are decoded."
        ) from error
    # Pillow's decoders raise many kinds of errors on damaged files.
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, EOFError) as error:
        raise ImageInvalid(f"The image is damaged or cut short: {error}") from error
    except (OverflowError, ZeroDivisionError, AttributeError, RuntimeError) as error:
        raise ImageInvalid(f"The image is damaged: {error}") from error


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with _opened(data, max_pixels) as image:
            return to_rgb(_loaded(image, data))
    except (OSError, ValueError) as error:
        repaired = _repaired(data, error, max_pixels)
        if repaired is None:
            raise
    with _opened(repaired, max_pixels) as image:
        return to_rgb(image)


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """Load the pixels of an opened image, and free what its decoder no longer needs."""
    if _decoder_name(image) == "ppm":
        return _scaled_ppm(image, data)
    image.load()
    if image.format in ("WEBP", "AVIF"):
        image._decoder = None  # type: ignore[attr-defined]  # holds more images of this size
    return image


def _decoder_name(image: Image.Image) -> str:
    tiles = getattr(image, "tile", [])
    return str(tiles[0][0]) if tiles else ""


def _scaled_ppm(image: Image.Image, data: bytes) -> Image.Image:
    """Read a binary PPM or PGM whose numbers do not end at 255 or 65,535; Pillow reads it number
    by number in Python, and gives the same pixels."""
    _, (_, _, width, height), offset, (_, largest) = image.tile[0]  # type: ignore[attr-defined]
    kind, top = (np.int32, 65_535) if image.mode == "I" else (np.uint8, 255)
    table = np.minimum(top, np.rint(np.arange(65_536) / largest * top)).astype(kind)
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    stored = np.frombuffer(data, ">u2" if largest > 255 else "u1", int(np.prod(shape)), offset)
    scaled = np.empty(shape, kind)
    for row, numbers in zip(scaled, stored.reshape(height, -1), strict=True):
        row[...] = table[numbers].reshape(row.shape)
    return Image.fromarray(scaled)


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image, and check its declared size before any pixel is decoded."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, which the user has raised
    formats = ("HEIF",) if _is_heif(data) and reads_heif() else IMAGE_FORMATS
    image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image declares {width} x {height} = {width * height:,} pixels; "
            f"at most {max_pixels:,} are accepted. Scale it down first, because the model sees a "
            f"square of a few hundred pixels, or raise {MAX_IMAGE_PIXELS_VARIABLE} where images "
            f"are decoded.",
            width=width,
            height=height,
            max_pixels=max_pixels,
        )
    _check_slow_form(image, len(data))
    return image


def _check_slow_form(image: Image.Image, size_bytes: int) -> None:
    """Raise ImageTooLarge for a large image whose decoder runs in Python, number by number."""
    form = _SLOW_FORMS.get(_decoder_name(image))
    width, height = image.size
    if form and (width * height > _MAX_SLOW_PIXELS or size_bytes > _MAX_SLOW_BYTES):
        raise ImageTooLarge(
            f"The image is {form} of {width} x {height} pixels and {size_bytes:,} bytes; in this "
            f"form, which is slow to decode, at most {_MAX_SLOW_PIXELS:,} pixels and "
            f"{_MAX_SLOW_BYTES:,} bytes are accepted. Save it as PNG.",
            width=width,
            height=height,
            max_pixels=_MAX_SLOW_PIXELS,
        )


@cache
def reads_heif() -> bool:
    """Return True if ``pillow-heif`` is installed, after making Pillow use it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _is_heif(data: bytes) -> bool:
    """Return True for HEIC and its relatives, but not AVIF, which has the same container."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4]), 256)
    brands = {data[start : start + 4] for start in range(8, end, 4)}
    return bool(brands & _HEVC_BRANDS) or (b"mif1" in brands and not brands & {b"avif", b"avis"})


def _repaired(data: bytes, error: Exception, max_pixels: int) -> bytes | None:
    """Return a file that Pillow reads in place of one that it refuses; None if it is damaged."""
    if data.startswith(_PNG_HEAD) and isinstance(error, ValueError):
        return b"".join((_PNG_HEAD, *_chunks_without_texts(data)))
    if data.startswith(b"\xff\xd8") and "truncated" in str(error):
        return _ended_jpeg(data, max_pixels)
    return None


def _chunks_without_texts(png: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG except color profile and texts, whose size Pillow limits."""
    start = len(_PNG_HEAD)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] not in _PNG_TEXTS:
            yield png[start:end]
        start = end


def _ended_jpeg(data: bytes, max_pixels: int) -> bytes | None:
    """Return a JPEG with an end, if it lacks nothing but its last bytes.

    The decoder fills in what is missing without saying so. Decoding twice, once with other bytes
    in place of the missing ones, shows which rows they belong to: those that differ.
    """
    if not _has_all_scans(data):
        return None
    start = data.rstrip(b"\xff")
    ended = start + _JPEG_END
    try:
        first, height = _first_difference(
            ended, start + _OTHER_BYTES + _JPEG_END, max_pixels=max_pixels
        )
    except (OSError, ValueError, SyntaxError):
        return None
    return ended if height - first <= min(_LAST_ROWS, height // 8) else None


def _first_difference(data: bytes, other: bytes, *, max_pixels: int) -> tuple[int, int]:
    """Return the first row in which two files of one image differ, and their number of rows."""
    with _opened(data, max_pixels) as image, _opened(other, max_pixels) as other_image:
        for (top, band), (_, other_band) in zip(bands(image), bands(other_image), strict=True):
            differs = np.asarray(band) != np.asarray(other_band)
            rows = differs.any(axis=tuple(range(1, differs.ndim)))
            if rows.any():
                return top + int(rows.argmax()), image.height
        return image.height, image.height


def _has_all_scans(jpeg: bytes) -> bool:
    """Return True if the last scan of each coefficient has begun; a progressive file has many."""
    expected, exact = 0, set[tuple[int, int]]()
    position = 0
    while marker := _JPEG_MARKER.search(jpeg, position):
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2])
        segment = jpeg[marker.end() + 2 : position]
        match marker[0][1], list(segment):
            case 0xC0 | 0xC1 | 0xC2, [_, _, _, _, _, components, *_]:
                expected = 64 * components
            case 0xDA, [components, *values] if len(values) == 2 * components + 3:
                first, last, precision = values[-3:]
                if precision % 16 == 0:  # all bits
                    chosen = values[0:-3:2]
                    exact |= {(c, k) for c in chosen for k in range(first, last + 1)}
    return bool(expected) and len(exact) == expected


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
    data: bytes,
    preprocessing: Preprocessing,
    *,
    max_pixels: int | None = None,
    reserve: Callable[[int], AbstractContextManager[object]] | None = None,
) -> PixelArray:
    """Decode an image file, then resize and crop it: (S, S, 3) uint8.

    Args:
        data: content of the file.
        preprocessing: of the backbone.
        max_pixels: maximum number of pixels; None: ``max_image_pixels()``.
        reserve: called with the bytes that decoding takes, before anything is decoded; they are in
            use until the context that it returns is left.
    """
    with nullcontext() if reserve is None else reserve(decoding_bytes(data, max_pixels=max_pixels)):
        return to_pixels(decode_image(data, max_pixels=max_pixels), preprocessing)
