"""Throughput of ``prompt-serve score --engine ray`` with 1 and 2 workers, against this process.

    python -m benchmarks.ray_scoring --images 2000

Images are drawn JPEGs of 640 x 480; the backbone is ``embedded``, on one core per worker. A run
with one worker and a tenth of the images before the others takes the cost of starting Ray out of
the rates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--prompt", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "photos", arguments.images)
        for engine in (["--engine", "local"], *(["--engine", "ray", "--workers", str(n),
                        "--cores-per-worker", "1"] for n in (1, 2))):  # fmt: skip
            seconds = [
                run(folder, arguments.prompt, engine, count)
                for count in (max(SHARD, arguments.images // 10), arguments.images)
            ]
            rate = (arguments.images - max(SHARD, arguments.images // 10)) / (
                seconds[1] - seconds[0]
            )
            print(f"{' '.join(engine[1:])}: {rate:.1f} images/s after a start; "
                  f"{seconds[1]:.1f} s for {arguments.images:,} with it", flush=True)  # fmt: skip


def draw(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05}.jpg", quality=90)


def run(folder: Path, prompt: Path, engine: list[str], count: int) -> float:
    listed = folder / "list.txt"
    paths = sorted((folder / "photos").iterdir())[:count]
    listed.write_text("\n".join(map(str, paths)))
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", "score", str(listed), "--prompt", str(prompt),
         "--out", str(folder / "scores"), "--overwrite", "--shard-size", str(SHARD), "--json",
         "--no-progress", *engine],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return float(json.loads(done.stdout)["seconds"])


if __name__ == "__main__":
    main()
