"""Shards: parts of a source that are read, scored and written one by one.

A shard is small, holds no data and can be sent to another process.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prompt_serve.errors import PromptServeError
from prompt_serve.types import FloatArray


@dataclass(frozen=True)
class Item:
    """One image of a shard."""

    source: str  # path or URL, or a name that the archive or table gives it
    data: bytes | PromptServeError | None  # of the image file; None: in the file ``source``


@dataclass(frozen=True)
class EmbeddingBatch:
    """Embeddings of B images."""

    sources: list[str]
    vectors: FloatArray  # (B, E), of any norm
    errors: dict[int, tuple[str, str]]  # code and text, of images without an embedding


class ImageShard(Protocol):
    """Images to encode."""

    @property
    def name(self) -> str:
        """Description that is equal for equal content, for people and for ``digest``."""

    @property
    def size(self) -> int | None:
        """Number of images, if it is known without reading them."""

    def items(self) -> Iterator[Item]:
        """Yield the images, reading a bounded number ahead."""


class EmbeddingShard(Protocol):
    """Embeddings to score."""

    @property
    def name(self) -> str:
        """Description that is equal for equal content, for people and for ``digest``."""

    @property
    def size(self) -> int | None:
        """Number of embeddings."""

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the backbone that made them, if it is known."""

    def batches(self, rows: int) -> Iterator[EmbeddingBatch]:
        """Yield at most ``rows`` embeddings at a time."""


Shard = ImageShard | EmbeddingShard


def holds_embeddings(shard: Shard) -> bool:
    """Return True for embeddings, False for images."""
    return hasattr(shard, "batches")


def digest(*parts: str) -> str:
    """Return 16 digits that stand for some texts."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16]
