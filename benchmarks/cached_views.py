"""Accuracy with K cached views per image against new views at every epoch.

Training samples one of K precomputed views of each image per step. With K = epochs a run sees about
as many different views as with live augmentation. Compares K = 1, 4, 16 and 50 at 50 epochs on the
base classes of ``methods_table``, with paired seeds.

    python -m benchmarks.cached_views
"""

import argparse
import statistics

from benchmarks.learned_vs_zero_shot import emoji_folder
from benchmarks.methods_table import TEXT, spread
from prompt_serve.training.class_sets import halves
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.train import train_prompt

METHODS = {"coop": 0.05, "dip": 0.2}  # method -> learning rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 16, 50])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    base, _ = halves(read_dataset(emoji_folder()))
    backbone = load_backbone(TEXT)
    print("| method | K | base % | difference from the largest K |", "|---|---|---|---|", sep="\n")
    for method, rate in METHODS.items():
        found: dict[int, list[float]] = {}
        for views in arguments.views:
            for seed in range(1, arguments.seeds + 1):
                config = make_config(method=method, views=views, seed=seed, learning_rate=rate)
                result = train_prompt(backbone, base, config, cache=FeatureCache())
                found.setdefault(views, []).append(100 * result.comparisons["test"].prompt.accuracy)
        most = found[max(found)]
        for views, accuracies in found.items():
            pairs = zip(accuracies, most, strict=True)
            difference = statistics.mean(own - other for own, other in pairs)
            print(f"| {method} | {views} | {spread(accuracies)} | {difference:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
