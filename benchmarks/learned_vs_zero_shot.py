"""Zero-shot against DIP and CoOp with 16 shots, on test images not used for training.

Two datasets: the emoji sample that ships with prompt-serve (trained on some styles, tested on one
that neither the backbone nor the prompt has seen), and a folder of flower photographs. Settings
are fixed in advance or selected on validation images (``--learning-rate auto``); test images are
used once per line.

    python -m benchmarks.learned_vs_zero_shot --flowers ../shared/data/flowers
"""

import argparse
import statistics
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.progress import Progress
from prompt_serve.training.settings import AUTO
from prompt_serve.training.train import open_dataset, train_prompt
from prompt_serve.training.without_torch.outcome import TrainingResult

LearningRate = float | Literal["auto"] | None

# The folders have plural names; "a photo of a roses" is ungrammatical.
FLOWERS = {"roses": "rose", "sunflowers": "sunflower", "tulips": "tulip"}


def emoji_folder() -> Path:
    return Path(str(resources.files("prompt_serve") / "assets" / "emoji"))


def measure(
    backbone: Backbone, split: Split, config: TrainConfig, seeds: int
) -> list[TrainingResult]:
    return [
        train_prompt(
            backbone, split, config.replace(seed=seed), cache=FeatureCache(), progress=Progress()
        )
        for seed in range(1, seeds + 1)
    ]


def table(
    backbone: Backbone,
    title: str,
    folder: Path,
    rename: Mapping[str, str],
    configs: Mapping[str, TrainConfig],
    seeds: int,
) -> None:
    first = next(iter(configs.values()))
    split = open_dataset(folder, backbone, first, rename=rename, progress=Progress())
    images = ", ".join(f"{len(part)} {name}" for name, part in split.parts.items())
    print(f"\n{title}: {len(split.class_names)} classes; images: {images}")
    print(f"{'method':<12} {'test':>6} {'spread':>7} {'val':>6} {'payload':>8} {'file':>7}  lr")
    for name, config in configs.items():
        results = measure(backbone, split, config, seeds)
        test = [result.comparisons["test"].prompt.accuracy for result in results]
        val = [r.comparisons["val"].prompt.accuracy for r in results if "val" in r.comparisons]
        prompt = results[0].prompt
        rates = [result.prompt.training["learning_rate"] for result in results]
        print(
            f"{name:<12} {statistics.mean(test):>6.1%} "
            f"{statistics.stdev(test) if seeds > 1 else 0:>7.1%} "
            f"{f'{statistics.mean(val):.1%}' if val else '-':>6} "
            f"{prompt.payload_bytes:>6,} B {len(to_bytes(prompt)):>5,} B  "
            f"{', '.join('-' if rate is None else f'{rate:g}' for rate in rates)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--flowers", type=Path, default=Path("../shared/data/flowers"))
    parser.add_argument("--emoji", type=Path, default=emoji_folder())
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument(
        "--learning-rate",
        default=None,
        help="learning rate of all methods: a number, or auto (selected on validation images)",
    )
    arguments = parser.parse_args()

    given: str | None = arguments.learning_rate
    rate: LearningRate = AUTO if given == AUTO else None if given is None else float(given)
    backbone = load_backbone(arguments.backbone)
    print(f"{backbone.id} {backbone.ref.fingerprint[:12]}, {arguments.shots} shots, ", end="")
    print(f"{arguments.epochs} epochs, {arguments.seeds} seeds: mean and standard deviation")
    for title, folder, rename in (
        ("emoji, unseen style", arguments.emoji, {}),
        ("flowers", arguments.flowers, FLOWERS),
    ):
        if not folder.is_dir():
            print(f"\n{title}: skipped, there is no folder {folder}")
            continue
        settings = {
            "shots": arguments.shots,
            "epochs": arguments.epochs,
            "fewer_shots_ok": True,
        }
        configs = {"zero-shot": make_config(method="zero-shot", **settings)}
        # CoOp's default rate is too low for the small backbone, so it is selected on validation.
        methods: list[tuple[str, str, int, LearningRate]] = [
            ("dip r=1", "dip", 1, None),
            ("dip r=4", "dip", 4, None),
            ("coop", "coop", 1, AUTO),
        ]
        for name, method, rank, own_rate in methods:
            configs[name] = make_config(
                method=method, rank=rank, learning_rate=rate or own_rate, **settings
            )
        table(backbone, title, folder, rename, configs, arguments.seeds)


if __name__ == "__main__":
    main()
