"""Measure the CPU time of decoding and resizing photographs, by format, size and way of decoding.

The photographs are mosaics of real ones at their own size, as in benchmarks/decoding_agreement.py.
CPU time of this process, the least of several runs in turns; other programs change it little.

    python -m benchmarks.decoding_speed ../shared/data/flowers [--side 224]
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.decoding_agreement import MEGAPIXELS, mosaic, photographs
from prompt_serve.client.images import resized
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes, to_pixels

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "WebP": ("WEBP", {"quality": 85, "method": 2}),
    "PNG": ("PNG", {"compress_level": 3}),
}


def cpu_ms(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return (time.process_time() - started) * 1000


def main() -> None:
    """Print a line per format and size: ms of CPU per image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    scaled = Preprocessing(
        image_size=options.side, mean=(0.5,) * 3, std=(0.25,) * 3, decoding="scaled"
    )
    full = replace(scaled, decoding="full")
    small = photographs(options.folder)
    print(f"{'file':24} {'MB':>6} | {'full: decode':>13} {'resize':>7} {'both':>6} |", end="")
    print(f" {'scaled':>6} {'client':>7} {'KB sent':>8}")
    for megapixels in (0.3, *MEGAPIXELS):
        image = mosaic(small, megapixels, np.random.default_rng(0))
        for name, (kind, save) in FORMATS.items():
            file = io.BytesIO()
            image.save(file, kind, **save)
            data = file.getvalue()
            decoded: Image.Image = decode_image(data)
            stages = {
                "decode": lambda data=data: decode_image(data),
                "resize": lambda decoded=decoded: to_pixels(decoded, full),
                "both": lambda data=data: pixels_from_bytes(data, full),
                "scaled": lambda data=data: pixels_from_bytes(data, scaled),
                "client": lambda data=data: resized(data, scaled),
            }
            ms = {
                stage: min(values)
                for stage, values in zip(
                    stages,
                    zip(
                        *([cpu_ms(run) for run in stages.values()] for _ in range(options.runs)),
                        strict=True,
                    ),
                    strict=True,
                )
            }
            print(
                f"{f'{megapixels:g} MP {name}':24} {len(data) / 1e6:6.2f} | {ms['decode']:13.1f} "
                f"{ms['resize']:7.1f} {ms['both']:6.1f} | {ms['scaled']:6.1f} {ms['client']:7.1f} "
                f"{len(resized(data, scaled)) / 1000:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
