"""Zero-shot and adapter baselines on the base classes of ``methods_table``.

Three seeds; the adapters' settings are selected on validation images.

    python -m benchmarks.baselines_table --document docs/methods.md
"""

import argparse
import statistics
from pathlib import Path

from benchmarks.learned_vs_zero_shot import emoji_folder
from benchmarks.methods_table import TEXT, put, spread
from prompt_serve.research.baselines import Baseline, measure_baselines
from prompt_serve.training.class_sets import halves
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.loading import read_dataset


def line(seeds: list[Baseline]) -> str:
    test = [100 * baseline.parts["test"].accuracy for baseline in seeds]
    error = statistics.mean(100 * baseline.parts["test"].calibration_error for baseline in seeds)
    return f"| {seeds[0].name} | {seeds[0].learned_numbers:,} | {spread(test)} | {error:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--document", type=Path, help="Markdown file to update")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    base, _ = halves(read_dataset(emoji_folder()))
    backbone = load_backbone(TEXT)
    of_seeds = [
        measure_baselines(
            backbone, base, make_config(method="zero-shot", seed=seed), cache=FeatureCache()
        )
        for seed in range(1, arguments.seeds + 1)
    ]
    lines = ["| baseline | learned numbers | base % | ECE % |", "|---|---|---|---|"]
    lines += [line(list(seeds)) for seeds in zip(*of_seeds, strict=True)]
    print("\n".join(lines))
    if arguments.document:
        put(arguments.document, "baselines-table", "\n".join(lines))


if __name__ == "__main__":
    main()
