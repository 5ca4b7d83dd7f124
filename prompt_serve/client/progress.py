"""A progress bar for streams of images."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(images: object, *, shown: bool) -> "tqdm[Any]":
    """A bar on stderr that counts images; its length is known where ``images`` has one."""
    from tqdm import tqdm  # not needed by those who score without a bar

    total = len(images) if isinstance(images, Sized) else None
    return tqdm(total=total, unit="image", disable=not shown, smoothing=0.05)
