"""Datasets drawn for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {
    "blue": (30, 30, 220),
    "green": (30, 200, 30),
    "red": (220, 30, 30),
    "yellow": (220, 220, 30),
}


def draw_image(path: Path, color: tuple[int, int, int], seed: int) -> Path:
    """A noisy patch of one color."""
    noise = np.random.default_rng(seed).normal(0, 25, size=(40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(path)
    return path


def draw_dataset(root: Path, **counts: int) -> Path:
    """A folder a class of ``counts`` images in each part; no part names: one folder a class."""
    for number, (part, count) in enumerate(counts.items()):
        folder = root if part == "all" else root / part
        for index, (name, color) in enumerate(COLORS.items()):
            for n in range(count):
                seed = 10_000 * number + 1_000 * index + n
                draw_image(folder / name / f"{n:02}.png", color, seed)
    return root
