"""CPU of reading labeled images from folders, tables and archives: first, and again.

    python -m benchmarks.labeled_sources --images 5000

The first reading copies images that are not files into the cache; again, the copies are found.
Nothing is decoded: training does that for all sources alike.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from prompt_serve.training.data.loading import read_dataset
from tests.sources.labeled_forms import FORMS, Labeled, folder

CLASSES = 10
SHOWN = {
    "class folders": folder,
    "imagefolder, metadata.csv": FORMS["imagefolder, metadata.csv"],
    "CSV": FORMS["CSV"],
    "Parquet with bytes": FORMS["Parquet with bytes"],
    "WebDataset, .cls": FORMS["WebDataset, .cls text"],
    "tar.gz of class folders": FORMS["tar of class folders"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000, help="[default: %(default)s]")
    parser.add_argument("--kilobytes", type=int, default=40, help="per image [default: 40]")
    options = parser.parse_args()
    images = drawn(options.images, options.kilobytes * 1000)
    print(f"{'source':<26} {'first':>10} {'again':>10}  CPU ms per 1,000 images")
    for name, form in SHOWN.items():
        with tempfile.TemporaryDirectory() as place:
            os.environ["PROMPT_SERVE_CACHE"] = f"{place}/cache"
            source = form(images, Path(place) / "data")
            first, again = (reading(source) / options.images * 1e6 for _ in range(2))
            print(f"{name:<26} {first:>10.0f} {again:>10.0f}")


def drawn(count: int, size: int) -> list[Labeled]:
    """Return files of random bytes, in the order of their classes."""
    rng = np.random.default_rng(0)
    return [
        Labeled("train", f"class {n * CLASSES // count}", f"{n:06}.png", rng.bytes(size))
        for n in range(count)
    ]


def reading(source: Path) -> float:
    """Return the CPU seconds of reading a dataset."""
    start = time.process_time()
    read_dataset(source)
    return time.process_time() - start


if __name__ == "__main__":
    main()
