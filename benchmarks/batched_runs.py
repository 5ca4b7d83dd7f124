"""Steps per second of R runs trained in one batch, against the same runs in sequence.

A step is one update of one run. Image features are random (the image tower is not used); the text
tower, the learners and the loop are those of a real run. Both variants alternate.

    python -m benchmarks.batched_runs --backbone embedded --classes 12 --runs 3 8
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.training_speed import class_names
from prompt_serve.scoring import unit
from prompt_serve.training.batched_loop import fit_batched
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.loop import fit


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--method", default="dip")
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[3, 8], help="numbers of runs R to compare"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    backbone = load_backbone(arguments.backbone).to(arguments.device)
    names = class_names(arguments.classes)
    n = arguments.classes * arguments.shots
    rng = np.random.default_rng(0)
    features = unit(rng.normal(size=(n, 4, backbone.embed_dim)).astype(np.float32))
    train = FeatureSet(features=features, labels=np.arange(n) % len(names))
    steps = arguments.epochs * (n // min(32, n))
    print(f"{backbone.id}, {arguments.method}, {len(names)} classes, {backbone.device}")
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    for runs in arguments.runs:
        configs = [
            make_config(method=arguments.method, seed=seed, epochs=arguments.epochs)
            for seed in range(runs)
        ]

        def together(configs: list[TrainConfig] = configs) -> object:
            r = len(configs)
            return fit_batched(backbone, names, [train] * r, [None] * r, configs, [0.1] * r)

        def in_sequence(configs: list[TrainConfig] = configs) -> object:
            return [fit(backbone, names, train, None, c, learning_rate=0.1) for c in configs]

        seconds: dict[str, list[float]] = {"batched": [], "sequence": []}
        for turn in range(arguments.turns + 1):
            for label, work in (("batched", together), ("sequence", in_sequence)):
                taken = seconds_of(work)
                if turn:  # the first turn is a warm-up
                    seconds[label].append(taken)
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        for label, values in seconds.items():
            rates = sorted(runs * steps / value for value in values)
            rate = runs * steps / medians[label]
            print(f"R = {runs}, {label:<8} {rate:8.1f} steps/s ({rates[0]:.1f} to {rates[-1]:.1f})")
        print(f"R = {runs}, ratio    {medians['sequence'] / medians['batched']:8.2f}x")


if __name__ == "__main__":
    main()
