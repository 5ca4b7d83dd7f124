"""Digests of files and settings, by which a run is recognized as one that was trained before.

Files count by path, size and time of change, as in ``make``: a dataset is not read to plan runs.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prompt_serve.training.data.dataset import LabeledImage, Split


def digest_of(value: Any) -> str:
    """Return the sha256 of JSON types, in hexadecimal."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_images(split: Split) -> str:
    """Return a digest of the images of a dataset, their classes and parts."""
    parts = [
        [part, [[item.label, *_state(item)] for item in images.items]]
        for part, images in split.parts.items()
    ]
    return digest_of([list(split.class_names), parts])


def _state(image: LabeledImage) -> list[str | int]:
    if image.source:  # a copy, whose name tells its source and version, and whose time its last use
        return [image.path.name]
    return next(iter(file_states([image.path])), [])


def file_states(paths: Iterable[Path]) -> list[list[str | int]]:
    """Return path, size and time of each file that exists."""
    found: list[list[str | int]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append([str(path), status.st_size, status.st_mtime_ns])
    return found
