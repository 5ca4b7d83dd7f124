"""Parts of a parsed request, whatever its form: images, embeddings, tasks."""

import base64
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prompt_serve.errors import ImageInvalid, PromptServeError
from prompt_serve.schemas import DEFAULT_TOP_K
from prompt_serve.types import FloatArray, PixelArray

EVERY_TASK = "*"
# White space is left out; the URL-safe digits are those of the standard alphabet.
_BASE64_FORMS = {**dict.fromkeys(map(ord, " \t\r\n")), ord("-"): "+", ord("_"): "/"}
_PIECE_CHARACTERS = 2**20  # a multiple of 4, so that each piece is base64 of its own
# Two of 64 digits may be escaped, and line breaks.
_CHARACTERS_PER_ESCAPE, _SOME_ESCAPES = 10, 1_000
_ESCAPES = [
    (escape, character)
    for character in "+/=-_\r\n\t "
    for escape in {f"%{ord(character):02X}", f"%{ord(character):02x}"}
]


@dataclass(frozen=True)
class ImageUrl:
    """URL of an image that the service has to fetch."""

    url: str


@dataclass(frozen=True)
class ImageItem:
    """One image of a request: file bytes, preprocessed (S, S, 3) pixels, a URL, or an error."""

    content: bytes | PixelArray | ImageUrl | PromptServeError
    filename: str | None = None


@dataclass(frozen=True)
class EmbeddingItem:
    """One embedding of a request: (E,) of unit length, or an error."""

    content: FloatArray | PromptServeError
    filename: None = None


@dataclass(frozen=True)
class TaskSelector:
    """Requested tasks: by name (``*`` for all), by ``name@version``, or by tag."""

    names: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class TaskQuery:
    """Requested tasks, the number of classes per task, and of tasks per image (None: all)."""

    selector: TaskSelector = TaskSelector()
    top_k: int = DEFAULT_TOP_K
    top_tasks: int | None = None


def image_from_text(text: str) -> ImageItem:
    """Parse an image in JSON: a URL, a data URI, or a file in base64.

    Text that cannot be parsed becomes an item with an error, so that the request's other images are
    answered.
    """
    text = text.strip()
    if text[:8].lower().startswith(("http://", "https://")):
        return ImageItem(ImageUrl(text))
    try:
        return ImageItem(_from_base64(text))
    except ImageInvalid as error:
        return ImageItem(error)


def _from_base64(text: str) -> bytes:
    """Decode base64 as programs write it: with line breaks, without padding, or URL-safe."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageInvalid("The data URI is not of the form data:image/png;base64,...")
        if "%" in text:
            text = _unescaped(text)
    with contextlib.suppress(ValueError):
        return _decoded(text)
    digits = "".join(piece.translate(_BASE64_FORMS) for piece in _pieces(text)).rstrip("=")
    try:
        return _decoded(digits + "=" * (-len(digits) % 4))
    except ValueError as error:
        raise ImageInvalid(f"The image is not base64: {error}.") from error


def _unescaped(text: str) -> str:
    """Replace the percent escapes of base64; ``unquote`` takes a second per ten megabytes.

    Raises:
        ImageInvalid: more escapes than base64 needs.
    """
    if text.count("%") > len(text) // _CHARACTERS_PER_ESCAPE + _SOME_ESCAPES:
        raise ImageInvalid("The data URI has escapes in place of the digits of base64.")
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text


def _decoded(digits: str) -> bytes:
    """Decode base64 piece by piece: at once, it would keep other threads waiting."""
    padding = digits.find("=")
    if 0 <= padding < len(digits) - 2:
        raise ValueError("padding before its end")
    return b"".join(base64.b64decode(piece, validate=True) for piece in _pieces(digits))


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE_CHARACTERS):
        yield text[start : start + _PIECE_CHARACTERS]
