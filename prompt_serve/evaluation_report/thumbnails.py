"""Image files as small data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from prompt_serve.errors import ImageInvalid, ImageTooLarge
from prompt_serve.preprocess import decode_image

SIDE = 128  # pixels
MAX_FILE_BYTES = 64 * 2**20
_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG as a data URI of about 4 KB, or the reason why there is none."""

    source: str | None
    fault: str = ""


def thumbnail(path: Path) -> Thumbnail:
    """Return the image at ``path`` with sides of at most ``SIDE`` pixels."""
    try:
        if not path.is_file():
            return Thumbnail(None, "the image file is not there")
        if path.stat().st_size > MAX_FILE_BYTES:
            return Thumbnail(None, "the image file is too large")
        image = decode_image(path.read_bytes())
    except (ImageInvalid, ImageTooLarge, OSError, ValueError):
        return Thumbnail(None, "the image file cannot be read")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, optimize=True)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{text}")
