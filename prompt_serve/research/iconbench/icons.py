"""Contents of an iconify set: SVG bodies under keys that spell an emoji's name with hyphens."""

import re
from collections.abc import Mapping
from typing import Any

_SIZE = 'width="SIZE" height="SIZE"'
_DEFAULT_SIDE = 16  # iconify's default width and height


def slug(label: str) -> str:
    """Convert emojibase's label to iconify's key: `hot dog` -> `hot-dog`."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def whole_svg(icon: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Wrap an icon's body in an SVG document; ``sized`` sets its size.

    Args:
        icon: one of ``document["icons"]``, with its own view box or the set's.
        document: an iconify ``icons.json``.
    """
    left, top = (icon.get(side, document.get(side, 0)) for side in ("left", "top"))
    width, height = (
        icon.get(side, document.get(side, _DEFAULT_SIDE)) for side in ("width", "height")
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{_SIZE} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def sized(svg: str, size: int) -> str:
    """Set the side length in pixels of a document from ``whole_svg``."""
    return svg.replace(_SIZE, f'width="{size}" height="{size}"', 1)
