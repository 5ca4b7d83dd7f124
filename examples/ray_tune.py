"""Search the settings of a method with Ray Tune, around prompt-serve's own training.

    pip install 'prompt-serve[train,ray]' 'ray[tune]'
    python examples/ray_tune.py pets/ pets.safetensors --trials 20

Trials are compared on validation images. The test images are evaluated once, for the winner.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from prompt_serve.prompts.prompt_file import write_prompt_file
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.config import make_config, with_user_settings
from prompt_serve.training.train import open_dataset, train_prompt
from prompt_serve.training.without_torch.outcome import TrainingResult

SEARCHED = {
    "learning_rate": tune.loguniform(1e-3, 1e-1),
    "n_ctx": tune.choice([2, 4, 8, 16]),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
}


def train(
    settings: dict[str, Any], dataset: Path, backbone_name: str, *, with_test: bool
) -> TrainingResult:
    """Train one prompt."""
    backbone = load_backbone(backbone_name)
    config = make_config(with_user_settings({"method": "coop", **settings}))
    split = open_dataset(dataset, backbone, config)
    return train_prompt(backbone, split if with_test else replace(split, test=None), config)


def trial(settings: dict[str, Any], *, dataset: Path, backbone_name: str) -> None:
    """Train with some settings, and report the accuracy on validation images."""
    result = train(settings, dataset, backbone_name, with_test=False)
    tune.report({"accuracy": result.comparisons["val"].prompt.accuracy})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=50)
    given = parser.parse_args()
    dataset = given.dataset.absolute()

    objective = tune.with_parameters(trial, dataset=dataset, backbone_name=given.backbone)
    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={**SEARCHED, "epochs": given.epochs},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=given.trials),
    )
    found = tuner.fit()
    best = found.get_best_result()
    if best.config is None or best.metrics is None:
        raise SystemExit("No trial was successful.")
    print(f"best of {len(found)}: {best.config}, validation {best.metrics['accuracy']:.1%}")

    result = train(best.config, dataset, given.backbone, with_test=True)
    write_prompt_file(result.prompt, given.out)
    test = result.comparisons.get("test")
    print(
        f"{given.out}: test {test.prompt.accuracy:.1%}" if test else f"{given.out}: no test images"
    )


if __name__ == "__main__":
    main()
