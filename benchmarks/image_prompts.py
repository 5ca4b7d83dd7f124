"""Cost of prompts of the image tower, for batches in which some images have rows of their task.

    prompt-serve export ViT-B-16/random -o fp32
    prompt-serve export ViT-B-16/random -o int8 --precision int8
    python -m benchmarks.image_prompts --bundle fp32 --bundle int8

Prints the CPU time of one batch relative to the plain graph, for rows per block x images with rows:
run whole in the graph with vectors, split between the two graphs, and what the service chooses by
its own measurement. One thread, CPU time, all kinds of batches in turn and the least of the rounds,
so that a busy machine matters less. The last lines say how much the other images of a batch change
the features of an image.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from prompt_serve.bundle import open_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.image_graphs import ImageGraphs
from prompt_serve.export.samples import random_pixels
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray

ROWS = (1, 4, 16)  # per block
PLAIN = "plain"
Work = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", required=True)
    parser.add_argument("--batch", type=int, default=16, help="images per batch")
    parser.add_argument("--rounds", type=int, default=6, help="timed batches of each kind")
    options = parser.parse_args()
    for path in options.bundle:
        bundle = open_bundle(path)
        encoders = Encoders.open(bundle, cuda_device=None, threads=1)
        tower = _Tower(encoders, options.batch)
        print(f"\n{bundle.manifest.backbone.id}, {bundle.manifest.precision}, ", end="", flush=True)
        print_costs(tower, options.rounds)
        print_disturbance(tower)


class _Tower:
    """Encoders of a bundle, a batch of images, and rows of tasks."""

    def __init__(self, encoders: Encoders, batch: int) -> None:
        size = encoders.bundle.manifest.image_tower
        assert size is not None
        self.layers, self.width = size.layers, size.width
        self.pixels = random_pixels(encoders.preprocessing, count=batch)
        self.plain, self.prompted = encoders.encode_pixels, encoders.prompted
        self.graphs = ImageGraphs(
            self.plain,
            self.prompted,
            layers=self.layers,
            width=self.width,
            image_size=encoders.preprocessing.image_size,
            max_batch=batch,
        )
        self._rng = np.random.default_rng(0)

    def deep(self, count: int) -> ImageRows:
        """Rows in every block, as of deep VPT or ADAPT."""
        first, *deeper = (self._vectors(count) for _ in range(self.layers))
        return self._lay_out(PromptVectors(context=first, deeper=tuple(deeper)))

    def shallow(self, count: int) -> ImageRows:
        """Rows that go on through all blocks, as of shallow VPT."""
        return self._lay_out(PromptVectors(context=self._vectors(count)))

    def extreme(self) -> ImageRows:
        """Rows of one huge number each, as the test of int8 towers has them."""
        hot = np.zeros((4, self.width), dtype=np.float32)
        hot[range(4), range(4)] = 1e4
        return self._lay_out(PromptVectors(context=hot, deeper=(hot,) * (self.layers - 1)))

    def whole(self, rows: ImageRows, prompted: int) -> FloatArray:
        """Encode all images in the graph with vectors; the first ``prompted`` have rows."""
        without = len(self.pixels) - prompted
        return self.prompted.encode(self.pixels, [rows] * prompted + [None] * without)

    def split(self, rows: ImageRows, prompted: int) -> None:
        """Encode the images with rows and those without apart."""
        self.plain(self.pixels[prompted:])
        self.prompted.encode(self.pixels[:prompted], [rows] * prompted)

    def _vectors(self, count: int) -> FloatArray:
        return self._rng.standard_normal((count, self.width)).astype(np.float32)

    def _lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows:
        rows = self.graphs.lay_out(vectors)
        assert rows is not None
        return rows


def print_costs(tower: _Tower, rounds: int) -> None:
    """Print the table of costs, relative to the plain graph."""
    images = len(tower.pixels)
    shares = sorted({max(1, images // 16), max(1, images // 4), images})
    work: Work = {PLAIN: partial(tower.plain, tower.pixels)}
    for count in ROWS:
        rows = tower.deep(count)
        for prompted in shares:
            work[f"{count} {prompted} whole"] = partial(tower.whole, rows, prompted)
            if prompted < images:
                work[f"{count} {prompted} split"] = partial(tower.split, rows, prompted)
    work["shallow"] = partial(tower.whole, tower.shallow(ROWS[1]), images)
    ratios = ratios_in_turn(work, rounds)

    print(f"{images} images, plain graph {ratios[PLAIN]:.2f} s")
    print("| rows per block | images with rows | whole | split | the service |")
    print("|---|---|---|---|---|")
    for count in ROWS:
        for prompted in shares:
            whole, split = (
                ratios.get(f"{count} {prompted} {how}", 0.0) for how in ("whole", "split")
            )
            is_split = prompted < images and tower.graphs.is_split(images, prompted)
            shown = f"{split:.2f}" if split else "-"
            chosen = f"split, {split:.2f}" if is_split else f"whole, {whole:.2f}"
            print(f"| {count} | {prompted} of {images} | {whole:.2f} | {shown} | {chosen} |")
    print(f"{ROWS[1]} rows that go on through all blocks, all images: {ratios['shallow']:.2f}")


def ratios_in_turn(work: Work, rounds: int) -> dict[str, float]:
    """Return the least CPU time of each call, of ``PLAIN`` in seconds, of others as ratio to it."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = [*work]
    for _ in range(rounds + 1):  # the first round allocates memory
        for name in names:
            seconds[name].append(_cpu_seconds(work[name]))
        names.reverse()  # each kind has other neighbors
    # What else runs on the machine only ever adds time, by taking the caches.
    least = {name: min(taken[1:]) for name, taken in seconds.items()}
    return {name: s if name == PLAIN else s / least[PLAIN] for name, s in least.items()}


def print_disturbance(tower: _Tower) -> None:
    """Print how much the others of a batch change the features of one image without rows."""
    pixels, others = tower.pixels, len(tower.pixels) - 1
    alone = tower.prompted.encode(pixels[:1], [None])[0]
    beside: dict[str, ImageRows | None] = {
        "ordinary images": None,
        f"images with {ROWS[1]} rows per block": tower.deep(ROWS[1]),
        "images with extreme rows": tower.extreme(),
    }
    for name, rows in beside.items():
        found = tower.prompted.encode(pixels, [None, *[rows] * others])[0]
        print(
            f"beside {others} {name}: cosine to the features alone {found @ alone:.6f}, "
            f"largest difference {np.abs(found - alone).max():.1e}"
        )


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main()
