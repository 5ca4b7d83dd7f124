"""Seconds of ``prompt-serve train-many`` by engine and runs at a time, against one after the other.

    python -m benchmarks.train_many /work/photos --seeds 4

Two methods by so many seeds on one folder of images, one core per run; the feature cache is filled
before, so that every engine finds the same.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = """
seeds = {seeds}
[settings]
epochs = {epochs}
[datasets]
photos = {photos!r}
[methods.coop]
[methods.dip]
"""
ENGINES = {
    "one at a time": ["--jobs", "1"],
    "two processes": ["--jobs", "2"],
    "Ray": ["--engine", "ray"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("photos", type=Path, help="folder of images")
    add("--seeds", type=int, default=4, help="runs per method [default: %(default)s]")
    add("--epochs", type=int, default=20, help="epochs per run [default: %(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds(folder, options, "cache", [], seeds=1)
        for engine, arguments in ENGINES.items():
            took = seconds(folder, options, engine, arguments, seeds=options.seeds)
            runs = 2 * options.seeds
            print(
                f"{engine:>14}: {runs} runs in {took:.1f} s, {took / runs:.1f} s per run",
                flush=True,
            )


def seconds(
    folder: Path, options: argparse.Namespace, engine: str, arguments: list[str], *, seeds: int
) -> float:
    spec = folder / f"{engine}.toml"
    photos = str(options.photos.absolute())
    spec.write_text(
        SPEC.format(seeds=list(range(1, seeds + 1)), epochs=options.epochs, photos=photos)
    )
    command = [sys.executable, "-m", "prompt_serve", "train-many", str(spec), "--threads", "1"]
    own = ["--out", str(folder / engine), "--cache", str(folder / "features")]
    began = time.perf_counter()
    subprocess.run([*command, *own, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
