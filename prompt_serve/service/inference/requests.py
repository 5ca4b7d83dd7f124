"""What a request asks for, whatever form it came in: images, tasks, how many classes, how long."""

import base64
import binascii
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import ImageInvalid, PromptServeError, RequestInvalid
from prompt_serve.schemas import TIMEOUT_HEADER
from prompt_serve.types import FloatArray, PixelArray

EVERY_TASK = "*"


@dataclass(frozen=True)
class ImageUrl:
    """An image that is somewhere else."""

    url: str


@dataclass(frozen=True)
class ImageItem:
    """One image of a request: a file's bytes, preprocessed pixels (S, S, 3), a URL, or why not."""

    content: bytes | PixelArray | ImageUrl | PromptServeError
    filename: str | None = None


@dataclass(frozen=True)
class EmbeddingItem:
    """One embedding of a request: unit length (E,), or why not."""

    content: FloatArray | PromptServeError
    filename: None = None


@dataclass(frozen=True)
class TaskSelector:
    """The tasks that are meant: by name (``*`` is all of them), ``name@version``, or tag."""

    names: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a request's time is up, on ``time.monotonic()``, and how long that was."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> "Deadline":
        return cls(at=time.monotonic() + timeout_s, timeout_s=timeout_s)

    @classmethod
    def of_header(cls, text: str | None, longest_s: float) -> "Deadline":
        """From now on, as a request's header says; the service's own limit where it says nothing.

        Raises:
            RequestInvalid: no whole number of milliseconds above 0.
        """
        if text is None:
            return cls.after(longest_s)
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
            raise RequestInvalid(
                f"{TIMEOUT_HEADER} is {text[:50]!r}; wanted a whole number of milliseconds above 0."
            )
        return cls.after(min(int(text) / 1000, longest_s))


def image_of_text(text: str) -> ImageItem:
    """An image as JSON has it: a URL, a data URI, or a file's bytes in base64.

    What cannot be read is an item with an error, so that the others of its request are answered.
    """
    if text[:8].lower().startswith(("http://", "https://")):
        return ImageItem(ImageUrl(text))
    try:
        return ImageItem(_from_base64(text))
    except ImageInvalid as error:
        return ImageItem(error)


def _from_base64(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageInvalid("The data URI is not of the form data:image/png;base64,...")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageInvalid(f"The image is not base64: {error}.") from error
