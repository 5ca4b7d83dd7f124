"""Progress bar for streams of images."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(images: object, *, shown: bool) -> "tqdm[Any]":
    """Return a bar on stderr that counts images; it has a total if ``images`` has a length."""
    from tqdm import tqdm  # imported late: not needed when no bar is shown

    total = len(images) if isinstance(images, Sized) else None
    return tqdm(total=total, unit="image", disable=not shown, smoothing=0.05)
