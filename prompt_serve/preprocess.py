"""Preprocess an image: file bytes -> RGB -> pixels. Training, serving and client share this code.

A JPEG that is much larger than what the image tower sees is decoded at 1/2, 1/4 or 1/8 of its size,
which libjpeg does as part of the inverse DCT: a photograph of 12 megapixels takes a quarter of the
time. Its shorter side stays at three times the tower's or more. ``Preprocessing.decoding`` says so.
It is part of what keys the feature cache, but not of the backbone's fingerprint: as with the
precisions of a bundle, the features are the same to 0.999 in cosine
(benchmarks/decoding_agreement.py), and a prompt learned with one is served with the other. Other
formats are decoded at full size.

Unusual images:

* EXIF orientation is applied; unreadable EXIF is ignored.
* Transparent pixels (RGBA, LA, a palette with transparency) are composited on white.
* CMYK, palette, gray and 16-bit images are converted to 8-bit RGB; 16-bit gray is scaled, not
  clipped.
* Of an animation or a file with several pages, the first frame is used.
* Color profiles (ICC) are ignored, as they were when the backbones were trained; so are texts, of
  any size.
* A JPEG that lacks its last bytes is read if all but the last of its rows are there.
* A JPEG of more than 100 scans is refused, since each takes the time of a whole image.
* HEIC is read where ``pillow-heif`` is installed.
* The size limit applies to the *declared* size, before any pixel is decoded. It is the same
  everywhere: ``PROMPT_SERVE_MAX_IMAGE_PIXELS``.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from prompt_serve.errors import ConfigInvalid, ImageInvalid, ImageTooLarge
from prompt_serve.images.jpeg_scans import (
    MAX_SCANS,
    has_all_scans,
    has_end,
    has_too_many_scans,
    is_decoded_whole,
)
from prompt_serve.images.rgb_conversion import (
    Box,
    bands,
    turned_box,
    upright,
    upright_to_rgb,
)
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
_JPEG_HEAD = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
# Some coefficients, and after each restart marker some more: a file may end before a marker.
_OTHER_BYTES = b"".join(b"\xb5\xd3\x6e" * 50 + b"\xff%c" % code for code in range(0xD0, 0xD8))
# Rows of the last blocks of a JPEG, and two that the interpolation of colors reaches.
_LAST_ROWS = 18

# Decoders of Pillow that run in Python, and the largest images that they may be given.
_SLOW_FORMS = {"ppm_plain": "a plain (text) PPM, PGM or PBM", "bmp_rle": "a run-length encoded BMP"}
_MAX_SLOW_PIXELS = 500_000
_MAX_SLOW_BYTES = 2 * 2**20
# Decoders of WebP and AVIF hold the interpreter's lock for about 8 ms per megapixel.
_MAX_LOCKED_PIXELS = 2_000_000
# Memory at the peak of decoding, measured by benchmarks/decoding_memory.py; a pixel of Pillow's RGB
# has 4 bytes, and a turned or composited image is there twice. Of a JPEG, the pixels that are
# decoded count.
_BYTES_PER_PIXEL = {"JPEG": 12, "MPO": 12, "PNG": 16, "WEBP": 22, "GIF": 10, "BMP": 16, "PPM": 12}
_MOST_BYTES_PER_PIXEL = 24  # TIFF, AVIF, HEIF
_COEFFICIENT_BYTES = 8  # per declared pixel of a JPEG with several scans: all are in memory
_FIXED_BYTES = 2**20

# Sides of the tower's square that the shorter side of a scaled JPEG has at least. With 2, single
# features of the shipped backbones differ by 0.996 in cosine (benchmarks/decoding_agreement.py).
DECODED_SIDES = 3

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
    # "full" is that of bundles from before JPEGs were scaled, and of the papers' protocols.
    decoding: Literal["full", "scaled"] = "full"

    @property
    def decoded_side(self) -> int | None:
        """Shortest side at which a JPEG may be decoded, in pixels; None: at full size only."""
        return None if self.decoding == "full" else DECODED_SIDES * self.image_size


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


def decode_image(
    data: bytes, *, max_pixels: int | None = None, min_side: int | None = None
) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    Args:
        data: content of the file.
        max_pixels: maximum number of pixels; None: ``max_image_pixels()``.
        min_side: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, its shorter side still of
            so many pixels; None: every image is decoded at full size.

    Raises:
        ImageTooLarge: the file declares more than ``max_pixels`` pixels, or more than are accepted
            in a form that is slow to decode; nothing was decoded.
        ImageInvalid: the file is not an image in a known format, or is damaged.
    """
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    with _image_errors(data):
        return _decode(data, max_pixels, min_side)[0]


def decoding_bytes(
    data: bytes, *, max_pixels: int | None = None, min_side: int | None = None
) -> int:
    """Return the memory that decoding an image file takes at most, from its declared size.

    Raises:
        ImageTooLarge, ImageInvalid: as ``decode_image``, as far as the header shows it.
    """
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    with _image_errors(data), _opened(data, max_pixels) as image:
        declared = image.width * image.height
        per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _MOST_BYTES_PER_PIXEL)
        if not _is_jpeg(data):
            return _FIXED_BYTES + declared * per_pixel
        if has_end(data):  # another is decoded twice, at full size
            _scale(image, min_side)
        coefficients = declared * _COEFFICIENT_BYTES if is_decoded_whole(data) else 0
        return _FIXED_BYTES + coefficients + image.width * image.height * per_pixel


def keeps_threads_waiting(data: bytes, *, max_pixels: int | None = None) -> bool:
    """Return True for an image whose decoder would hold the interpreter's lock for long.

    Raises:
        ImageTooLarge, ImageInvalid: as ``decode_image``, as far as the header shows it.
    """
    if not (data.startswith(b"RIFF") or data[4:8] == b"ftyp") or _is_heif(data):
        return False
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    with _image_errors(data), _opened(data, max_pixels) as image:
        return image.width * image.height > _MAX_LOCKED_PIXELS


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


def _decode(data: bytes, max_pixels: int, min_side: int | None) -> tuple[Image.Image, Box | None]:
    """Decode an image; returns the box that it fills as well if it was scaled."""
    try:
        return _decode_intact(data, max_pixels, min_side)
    except (OSError, ValueError) as error:
        repaired = _repaired(data, error, max_pixels)
        if repaired is None:
            raise
    return _decode_intact(repaired, max_pixels, min_side)


def _decode_intact(
    data: bytes, max_pixels: int, min_side: int | None
) -> tuple[Image.Image, Box | None]:
    with _opened(data, max_pixels) as image:
        box = _scale(image, min_side)
        size = image.size
        image, orientation = upright(_loaded(image, data))
        rgb = upright_to_rgb(image)
        return rgb, None if box is None else turned_box(box, size, orientation)


def _scale(image: Image.Image, min_side: int | None) -> Box | None:
    """Let the decoder of a JPEG scale it, its shorter side no shorter than ``min_side``.

    Returns:
        The box that the image fills: where its size is no multiple of the scale, the last column or
        row holds part of a pixel. None if it is not scaled.
    """
    size = image.size
    if min_side is None or (drafted := image.draft(None, (min_side, min_side))) is None:
        return None
    return None if image.size == size else drafted[1]


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
    if _is_jpeg(data) and has_too_many_scans(data):
        raise ImageInvalid(
            f"The JPEG has more than {MAX_SCANS} scans, each of which takes the time of a whole "
            f"image. Save it anew; encoders write up to 20."
        )
    return image


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(_JPEG_HEAD)


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
    # One with an end lacks something else, and its memory was counted for decoding it once, scaled.
    if _is_jpeg(data) and "truncated" in str(error) and not has_end(data):
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
    if not has_all_scans(data):
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


def to_pixels(
    image: Image.Image, preprocessing: Preprocessing, box: Box | None = None
) -> PixelArray:
    """Resize and crop an RGB image to the square the image tower sees.

    The filters are Pillow's, because the backbones were trained on images resized this way; other
    filters, such as OpenCV's bicubic without antialiasing, give other pixels. Sizes and crop
    offsets are rounded as torchvision does (``Resize`` of the short side, then ``CenterCrop``).

    Args:
        image: RGB.
        preprocessing: of the backbone.
        box: part of the image to be taken as the whole; None: all of it.

    Returns:
        (S, S, 3) uint8.
    """
    size = preprocessing.image_size
    resample = RESAMPLING[preprocessing.interpolation]
    if preprocessing.resize_mode == "squash":
        return np.asarray(image.resize((size, size), resample, box), dtype=np.uint8)
    if box is None:
        image = _cut_long_side(image)
        left, top, right, lower = (0.0, 0.0, float(image.width), float(image.height))
    else:
        left, top, right, lower = _cut_box(box)
    width, height = right - left, lower - top
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    new_size = (size, scaled) if width <= height else (scaled, size)
    if new_size != image.size:
        image = image.resize(new_size, resample, (left, top, right, lower))
    x = round((image.width - size) / 2.0)
    y = round((image.height - size) / 2.0)
    return np.asarray(image.crop((x, y, x + size, y + size)), dtype=np.uint8)


def _cut_box(box: Box) -> Box:
    """Cut a strip to its middle, as ``_cut_long_side`` does."""
    left, top, right, lower = box
    longest = MAX_ASPECT * min(right - left, lower - top)
    x, y = max(0.0, (right - left - longest) / 2), max(0.0, (lower - top - longest) / 2)
    return left + x, top + y, right - x, lower - y


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
    max_pixels = max_image_pixels() if max_pixels is None else max_pixels
    side = preprocessing.decoded_side
    needed = 0 if reserve is None else decoding_bytes(data, max_pixels=max_pixels, min_side=side)
    with nullcontext() if reserve is None else reserve(needed):
        with _image_errors(data):
            image, box = _decode(data, max_pixels, side)
        return to_pixels(image, preprocessing, box)
