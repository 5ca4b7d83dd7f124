"""Small real runs, kept as a protocol keeps them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_serve.prompt_file import Prompt, write_prompt_file
from prompt_serve.scoring import calibrated
from prompt_serve.training.backbone import Backbone
from prompt_serve.training.calibration import expected_calibration_error
from prompt_serve.training.class_sets import half_labels, of_labels, split_of_labels, with_classes
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data import ImageSet, Split
from prompt_serve.training.evaluate import prompt_logits
from prompt_serve.training.features import FeatureCache
from prompt_serve.training.methods import METHODS
from prompt_serve.training.protocols.results import Answers, Result, append_results, environment
from prompt_serve.training.run import TrainingResult, image_data, train_prompt

KEPT = 5  # classes an answer names at most


def base_to_new(
    folder: Path,
    backbone: Backbone,
    dataset: Split,
    *,
    name: str,
    label: str,
    settings: Mapping[str, Any],
    cache: FeatureCache | None = None,
) -> Result:
    """Learn the first half of the classes, test on both half_labels, keep everything."""
    base_labels, new_labels = half_labels(len(dataset.class_names))
    assert dataset.test is not None
    base = split_of_labels(dataset, base_labels)
    assert base.test is not None
    tests = {"base": base.test, "new": of_labels(dataset.test, new_labels)}
    return _keep(folder, backbone, base, tests, "base-to-new", name, label, settings, cache)


def few_shot(
    folder: Path,
    backbone: Backbone,
    dataset: Split,
    *,
    name: str,
    label: str,
    settings: Mapping[str, Any],
    cache: FeatureCache | None = None,
) -> Result:
    """Learn all classes."""
    assert dataset.test is not None
    tests = {"test": dataset.test}
    return _keep(folder, backbone, dataset, tests, "few-shot", name, label, settings, cache)


def _keep(
    folder: Path,
    backbone: Backbone,
    learned: Split,
    tests: Mapping[str, ImageSet],
    protocol: str,
    name: str,
    label: str,
    settings: Mapping[str, Any],
    cache: FeatureCache | None,
) -> Result:
    config = TrainConfig(**settings)
    trained = train_prompt(backbone, learned, config, cache=cache)
    answers = {
        test: _answers(trained.prompt, backbone, images, config, cache)
        for test, images in tests.items()
    }
    result = _result(trained, config, backbone, answers, protocol, name, label)
    own = folder / "runs" / result.run_id
    own.mkdir(parents=True)
    write_prompt_file(trained.prompt, own / "prompt.safetensors")
    lines = "".join(json.dumps(record.to_dict()) + "\n" for record in trained.history)
    (own / "history.jsonl").write_text(lines)
    for test, (kept, _, _) in answers.items():
        kept.save(own / f"answers-{test}.npz")
    append_results(folder, [result])
    return result


def _answers(
    prompt: Prompt,
    backbone: Backbone,
    images: ImageSet,
    config: TrainConfig,
    cache: FeatureCache | None,
) -> tuple[Answers, float, float]:
    """What was answered; accuracy; calibration error."""
    if images.class_names != prompt.class_names:
        prompt = with_classes(prompt, images.class_names, backbone)
    as_pixels = METHODS[config.method].prompts_images(config.resolved())
    data = image_data(images, backbone, as_pixels=as_pixels, cache=cache)
    probabilities = calibrated(prompt_logits(prompt, backbone, data), prompt.temperature)
    predicted = np.argsort(-probabilities, axis=1, kind="stable")[:, :KEPT]
    answers = Answers(
        paths=tuple(str(item.path) for item in images.items),
        labels=data.labels,
        probabilities=np.take_along_axis(probabilities, predicted, axis=1),
        predicted=predicted,
        class_names=images.class_names,
    )
    accuracy = float((predicted[:, 0] == data.labels).mean())
    return answers, accuracy, expected_calibration_error(probabilities, data.labels)


def _result(
    trained: TrainingResult,
    config: TrainConfig,
    backbone: Backbone,
    answers: Mapping[str, tuple[Answers, float, float]],
    protocol: str,
    name: str,
    label: str,
) -> Result:
    last = trained.history[-1] if trained.history else None
    validated = trained.comparisons.get("val")
    return Result(
        protocol=protocol,
        suite="own",
        dataset=name,
        method=config.method,
        label=label,
        seed=config.seed,
        shots=config.shots,
        accuracy={test: accuracy for test, (_, accuracy, _) in answers.items()},
        calibration_error={test: error for test, (_, _, error) in answers.items()},
        images={
            **trained.images,
            **{test: len(kept.paths) for test, (kept, _, _) in answers.items()},
        },
        classes={test: len(kept.class_names) for test, (kept, _, _) in answers.items()},
        validation_accuracy=validated.prompt.accuracy if validated else None,
        trained_numbers=trained.trained_numbers,
        payload_bytes=trained.prompt.payload_bytes,
        learning_rate=trained.prompt.training.get("learning_rate"),
        seconds=trained.seconds.get("learning", 0.0),
        idk=last.idk if last else (),
        config=trained.prompt.training,
        backbone={"id": backbone.id, "fingerprint": backbone.ref.fingerprint},
        environment=environment(),
    )
