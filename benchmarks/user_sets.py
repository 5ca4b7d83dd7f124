"""Image sets as users bring them: what ``prompt-serve train`` makes of each, and its rivals.

A folder holds sets laid out as ``NAME/train/CLASS/*`` and ``NAME/test/CLASS/*``. Every row learns
from all of ``train``; ``test`` measures and chooses nothing. Features are encoded once per set.

    python -m benchmarks.user_sets ../shared/data prompt_serve/assets --document docs/methods.md

Rows: the defaults (the command line as a whole, in a process of its own with a cold cache, its
seconds include the start and the features), class vectors at each width, class means, prompts,
zero-shot, and logistic regression. The bytes of a row are those of its file; logistic regression
has no file, so its numbers are counted as float16.

AUROC is of the test images of the set against those of all other sets: by the cosine to the sketch
in the file, and by the largest probability. ``--results FILE`` stores every finished row, so an
interrupted run resumes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.methods_table import put
from prompt_serve.calibration import fit_temperature
from prompt_serve.closed_form.cross_validation import cross_entropy
from prompt_serve.closed_form.discriminant import class_means
from prompt_serve.closed_form.folds import MOST_FOLDS, stratified_folds
from prompt_serve.closed_form.learn import PLAIN_BITS, LearnedClasses, encode_vectors, learn_classes
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.research.adapters import WEIGHT_DECAYS, logistic_regression
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.scoring import class_logits, softmax
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.config import make_config, with_user_settings
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache, image_features
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.train import train_prompt
from prompt_serve.training.without_torch.evaluation import evaluate
from prompt_serve.types import DoubleArray, FloatArray, IntArray

EPOCHS_200 = {"shots": 0, "views": 0, "epochs": 200}
PROMPTS: dict[str, dict[str, Any]] = {
    "zero-shot": {"method": "zero-shot", "shots": 0, "views": 0},
    "dip": {"method": "dip", **EPOCHS_200},
    "coop": {"method": "coop", **EPOCHS_200},
    "qcoop": {"method": "qcoop", "bits": 4, "n_ctx": 16, "init": "random", **EPOCHS_200},
    **{
        f"{name}-defaults": with_user_settings({"method": name})
        for name in ("qcoop", "coop", "dip")
    },
}
LABELS = {
    "defaults": "`train FOLDER` (seconds in all)",
    "vectors-16": "class vectors, float16",
    "vectors-8": "class vectors, 8 bits",
    "vectors-4": "class vectors, 4 bits",
    "vectors-2": "class vectors, 2 bits",
    "vectors-1": "class vectors, 1 bit",
    "means": "class means, float16",
    "qcoop": "QCoOp, 16 random vectors, 4 bits",
    "coop": "CoOp, 4 vectors",
    "dip": "DIP, r = 1",
    "qcoop-defaults": "`train --method qcoop`",
    "coop-defaults": "`train --method coop`",
    "dip-defaults": "`train --method dip`",
    "zero-shot": "zero-shot",
    "probe": "logistic regression",
}

COLUMNS = "least recall % | file | seconds | ECE % | AUROC, sketch | AUROC, probability"


@dataclass(frozen=True, kw_only=True)
class UserSet:
    """An image set with its features."""

    name: str
    folder: Path
    split: Split
    features: FloatArray  # (N, E) of the training images
    labels: IntArray  # (N,)
    test_features: FloatArray
    test_labels: IntArray

    @property
    def n_classes(self) -> int:
        return len(self.split.class_names)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """What one row learned from one set."""

    logits: Callable[[FloatArray], FloatArray]  # (N, E) -> (N, C), divided by the temperature
    similarity: Callable[[FloatArray], FloatArray] | None  # (N, E) -> (N,) cosines to the sketch
    file_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures of one row, on one set, with one seed."""

    method: str
    image_set: str
    seed: int
    accuracy: float
    least_recall: float  # of the class that is recalled least
    file_bytes: int
    seconds: float
    calibration_error: float
    sketch_auroc: float | None
    probability_auroc: float | None


def read_set(folder: Path, backbone: Backbone) -> UserSet:
    split = read_dataset(folder)
    assert split.test is not None
    train, test = (
        image_features(images, backbone, cache=FeatureCache())
        for images in (split.train, split.test)
    )
    return UserSet(
        name=folder.name,
        folder=folder,
        split=Split(train=split.train),
        features=train.plain,
        labels=train.labels,
        test_features=test.plain,
        test_labels=test.labels,
    )


def default_task(images: UserSet, backbone: Backbone, seed: int, *, name: str) -> Classifier:
    """Run ``prompt-serve train FOLDER`` as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "task.safetensors"
        command = [sys.executable, "-m", "prompt_serve", "train", str(images.folder / "train")]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--backbone", name, "--seed", str(seed), "--out", str(out), "--quiet"],
            check=True,
            env={**os.environ, "PROMPT_SERVE_CACHE": str(Path(folder) / "cache")},
        )
        seconds = time.perf_counter() - started
        return from_file(out.read_bytes(), images, backbone, seconds)


def prompt(images: UserSet, backbone: Backbone, seed: int, *, name: str) -> Classifier:
    config = make_config({**PROMPTS[name], "seed": seed})
    result = train_prompt(backbone, images.split, config, cache=FeatureCache())
    seconds = result.seconds.get("learning", 0.0)
    return from_file(to_bytes(result.prompt), images, backbone, seconds)


def class_vectors(images: UserSet, backbone: Backbone, seed: int, *, bits: int) -> Classifier:
    started = time.perf_counter()
    learned = learn_classes(
        images.features,
        images.labels,
        images.n_classes,
        logit_scale=backbone.logit_scale,
        bits=bits,
        seed=seed,
        text_features=class_features_of(_zero_shot(images, backbone), backbone),
    )
    seconds = time.perf_counter() - started
    data = _file(
        images,
        backbone,
        classes=learned.classes,
        temperature=learned.temperature,
        sketch=learned.sketch,
        unlike_below=learned.unlike_below,
    )
    return from_file(data, images, backbone, seconds)


def mean_vectors(images: UserSet, backbone: Backbone, seed: int) -> Classifier:
    """Score by the cosine to the class means; the temperature comes from out-of-fold scores."""
    started = time.perf_counter()

    def means(features: FloatArray, labels: IntArray) -> DoubleArray:
        vectors = class_means(features.astype(np.float64), labels, images.n_classes)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    scores = backbone.logit_scale * out_of_fold(images, seed, means)
    temperature = fit_temperature(scores.astype(np.float32), images.labels)
    vectors = backbone.logit_scale / temperature * means(images.features, images.labels)
    classes = encode_vectors(vectors, PLAIN_BITS, images.features)
    seconds = time.perf_counter() - started
    _, scale = classes.class_features()
    data = _file(images, backbone, classes=classes, temperature=backbone.logit_scale / scale)
    return from_file(data, images, backbone, seconds)


def linear_probe(images: UserSet, backbone: Backbone, seed: int) -> Classifier:
    """Fit multinomial logistic regression; cross-validation chooses the weight decay."""
    started = time.perf_counter()

    def weights(features: FloatArray, labels: IntArray, decay: float) -> FloatArray:
        initial = torch.zeros(images.n_classes, features.shape[1] + 1)
        fitted = logistic_regression(
            torch.from_numpy(features), torch.from_numpy(labels), initial, decay
        )
        return np.asarray(fitted.numpy())

    def loss(decay: float) -> float:
        scores = out_of_fold(images, seed, partial(weights, decay=decay))
        return float(cross_entropy(scores, images.labels).mean())

    chosen = weights(images.features, images.labels, min(WEIGHT_DECAYS, key=loss))
    return Classifier(
        logits=lambda features: np.asarray(features @ chosen[:, :-1].T + chosen[:, -1]),
        similarity=None,
        file_bytes=2 * chosen.size,
        seconds=time.perf_counter() - started,
    )


def out_of_fold(
    images: UserSet, seed: int, fit: Callable[[FloatArray, IntArray], DoubleArray | FloatArray]
) -> DoubleArray:
    """Score every training image (N, C) by weights (C, E), or (C, E + 1), fitted without it."""
    folds = stratified_folds(images.labels, seed=seed)
    scores = np.zeros((len(images.labels), images.n_classes))
    for fold in range(MOST_FOLDS):
        held = folds == fold
        weights = fit(images.features[~held], images.labels[~held])
        width = images.features.shape[1]
        scores[held] = images.features[held] @ weights[:, :width].T
        if weights.shape[1] > width:
            scores[held] += weights[:, width]
    return scores


Row = Callable[[UserSet, Backbone, int], Classifier]  # learns with a seed

ROWS: dict[str, Row] = {
    **{f"vectors-{bits}": partial(class_vectors, bits=bits) for bits in (16, 8, 4, 2, 1)},
    **{name: partial(prompt, name=name) for name in PROMPTS},
    "means": mean_vectors,
    "probe": linear_probe,
}


def from_file(data: bytes, images: UserSet, backbone: Backbone, seconds: float) -> Classifier:
    """Classify by what a prompt file holds."""
    task = from_bytes(data)
    assert task.class_names == images.split.class_names, "the labels are in another order"
    classes = class_features_of(task, backbone)
    scale = backbone.logit_scale / task.temperature
    directions = None if task.sketch is None else task.sketch.directions()
    return Classifier(
        logits=lambda features: class_logits(features, classes, scale),
        similarity=None
        if directions is None
        else lambda features: (features @ directions.T).max(axis=1),
        file_bytes=len(data),
        seconds=seconds,
    )


def _zero_shot(images: UserSet, backbone: Backbone, **parts: Any) -> Prompt:
    return Prompt(
        **{
            "name": images.name,
            "method": "zero-shot",
            "class_names": images.split.class_names,
            "templates": (DEFAULT_TEMPLATE,),
            "backbone": backbone.ref,
            "probe": np.zeros(images.n_classes, dtype=np.float16),
            **parts,
        }
    )


def _file(images: UserSet, backbone: Backbone, **parts: Any) -> bytes:
    features, _ = parts["classes"].class_features()
    return to_bytes(
        _zero_shot(images, backbone, method="class-vectors", probe=probe(features), **parts)
    )


def measure(
    method: str, learned: Classifier, images: UserSet, foreign: FloatArray, seed: int
) -> Outcome:
    """Look at the test images, once learning has ended."""
    logits = learned.logits(images.test_features)
    evaluation = evaluate(logits, images.test_labels)
    similar = probable = None
    if len(foreign):
        probable = auroc(softmax(logits).max(axis=1), softmax(learned.logits(foreign)).max(axis=1))
        if learned.similarity is not None:
            similar = auroc(learned.similarity(images.test_features), learned.similarity(foreign))
    return Outcome(
        method=method,
        image_set=images.name,
        seed=seed,
        accuracy=evaluation.accuracy,
        least_recall=min(recall for recall in evaluation.per_class if recall is not None),
        file_bytes=learned.file_bytes,
        seconds=learned.seconds,
        calibration_error=evaluation.calibration_error,
        sketch_auroc=similar,
        probability_auroc=probable,
    )


def auroc(own: FloatArray, foreign: FloatArray) -> float:
    """Return the probability that an own image scores above a foreign one; a tie counts half."""
    ordered = np.sort(foreign)
    below = np.searchsorted(ordered, own, side="left")
    not_above = np.searchsorted(ordered, own, side="right")
    return float((below + not_above).mean() / (2 * len(foreign)))


def left_out(images: UserSet, foreign: FloatArray, scale: float, seed: int) -> Sequence[float]:
    """Measure "unknown" by the sketch: shares rejected and AUROC, in the columns of its table.

    Each class in turn is left out of the learning; its test images are then images that the task
    does not know, of the same kind as those that it knows.
    """
    learn = partial(learn_classes, logit_scale=scale, seed=seed)
    task = learn(images.features, images.labels, images.n_classes)
    shares = [
        float((_similarity(task, features) < task.unlike_below).mean()) if len(features) else np.nan
        for features in (images.test_features, foreign)
    ]
    if images.n_classes == 2:
        return [*shares, *[np.nan] * 3]
    aurocs = []
    for label in range(images.n_classes):
        kept, known = images.labels != label, images.test_labels != label
        labels = images.labels[kept] - (images.labels[kept] > label)
        fewer = learn(images.features[kept], labels, images.n_classes - 1)
        cosines = _similarity(fewer, images.test_features)
        certainty = _certainty(fewer, images.test_features, scale)
        rejected = float((cosines[~known] < fewer.unlike_below).mean())
        aurocs.append([rejected, *(auroc(x[known], x[~known]) for x in (cosines, certainty))])
    return [*shares, *np.mean(aurocs, axis=0).tolist()]


def _similarity(task: LearnedClasses, features: FloatArray) -> FloatArray:
    return np.asarray((features @ task.sketch.directions().T).max(axis=1))


def _certainty(task: LearnedClasses, features: FloatArray, scale: float) -> FloatArray:
    classes, _ = task.classes.class_features()
    logits = class_logits(features, classes, scale / task.temperature)
    return np.asarray(softmax(logits).max(axis=1))


def set_table(outcomes: Sequence[Outcome]) -> Iterable[str]:
    """Yield the table of one set: means over seeds; the least recall is the least of all seeds."""
    yield f"| what | test % | {COLUMNS} |"
    yield "|---|---|---|---|---|---|---|---|"
    for label, chosen in _by_method(outcomes):
        yield f"| {label} | {_accuracy(chosen)} | {_cells(chosen)} |"


def summary(outcomes: Sequence[Outcome], sets: Sequence[str]) -> Iterable[str]:
    """Yield the table of all sets: accuracy on each; of the rest means, and the least recall."""
    yield f"| what | {' | '.join(sets)} | mean | {COLUMNS} |"
    yield "|---" * (len(sets) + 8) + "|"
    for label, chosen in _by_method(outcomes):
        each = [_accuracy([o for o in chosen if o.image_set == name]) for name in sets]
        yield f"| {label} | {' | '.join(each)} | {_accuracy(chosen)} | {_cells(chosen)} |"


def _by_method(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, Sequence[Outcome]]]:
    for method, label in LABELS.items():
        if chosen := [outcome for outcome in outcomes if outcome.method == method]:
            yield label, chosen


def _accuracy(outcomes: Sequence[Outcome]) -> str:
    return f"{100 * _mean(outcomes, 'accuracy'):.1f}" if outcomes else "-"


def _cells(outcomes: Sequence[Outcome]) -> str:
    """Return the cells of ``COLUMNS``."""
    cells = [
        f"{100 * min(outcome.least_recall for outcome in outcomes):.0f}",
        f"{_mean(outcomes, 'file_bytes'):,.0f} B",
        f"{_mean(outcomes, 'seconds'):.1f}",
        f"{100 * _mean(outcomes, 'calibration_error'):.1f}",
    ]
    for name in ("sketch_auroc", "probability_auroc"):
        known = [outcome for outcome in outcomes if getattr(outcome, name) is not None]
        cells.append(f"{_mean(known, name):.3f}" if known else "-")
    return " | ".join(cells)


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    return statistics.mean(float(getattr(outcome, name)) for outcome in outcomes)


def unknown_table(sets: Sequence[UserSet], scale: float, seeds: Sequence[int]) -> Iterable[str]:
    yield (
        "| set | own rejected % | foreign rejected % | left-out class rejected % | AUROC left-out "
        "class, sketch | the same, probability |"
    )
    yield "|---|---|---|---|---|---|"
    for images in sets:
        foreign = foreign_features(images, sets)
        figures = [left_out(images, foreign, scale, seed) for seed in seeds]
        own, others, rejected, *aurocs = np.mean(figures, axis=0)
        shares = " | ".join(f"{100 * share:.1f}" for share in (own, others, rejected))
        yield f"| {images.name} | {shares} | {' | '.join(f'{value:.2f}' for value in aurocs)} |"


def foreign_features(images: UserSet, sets: Sequence[UserSet]) -> FloatArray:
    """Return the features (F, E) of the test images of all other sets."""
    others = [other.test_features for other in sets if other is not images]
    return np.concatenate([np.empty((0, images.features.shape[1]), np.float32), *others])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders of image sets")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--seeds", default="1,2,3", help="seeds, separated by commas")
    parser.add_argument("--methods", default=",".join(LABELS), help="rows, separated by commas")
    parser.add_argument("--results", type=Path, help="JSON Lines file of finished rows")
    parser.add_argument("--document", type=Path, help="Markdown file to update")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    methods = arguments.methods.split(",")
    if unknown := [name for name in methods if name not in LABELS]:
        parser.error(f"unknown rows {unknown}; there are {', '.join(LABELS)}")

    backbone = load_backbone(arguments.backbone)
    rows: dict[str, Row] = {"defaults": partial(default_task, name=arguments.backbone), **ROWS}
    sets = [
        read_set(folder.parent, backbone)
        for parent in arguments.folders
        for folder in sorted(parent.glob("*/train"))
        if (folder.parent / "test").is_dir()
    ]
    outcomes = [Outcome(**json.loads(line)) for line in _lines(arguments.results)]
    done = {(o.method, o.image_set, o.seed) for o in outcomes}
    for images in sets:
        foreign = foreign_features(images, sets)
        for method, seed in product(methods, seeds):
            if (method, images.name, seed) in done:
                continue
            learned = rows[method](images, backbone, seed)
            outcomes.append(measure(method, learned, images, foreign, seed))
            if arguments.results:
                with arguments.results.open("a") as file:
                    file.write(json.dumps(asdict(outcomes[-1])) + "\n")
        print(f"\n{images.name}, {images.n_classes} classes, {len(images.labels)} images:\n")
        print(*set_table([o for o in outcomes if o.image_set == images.name]), sep="\n", flush=True)
    tables = {
        "user-sets": "\n".join(summary(outcomes, [images.name for images in sets])),
        "unknown-images": "\n".join(unknown_table(sets, backbone.logit_scale, seeds)),
    }
    for name, lines in tables.items():
        print(f"\n{name}:\n\n{lines}", flush=True)
        if arguments.document:
            put(arguments.document, name, lines)


def _lines(path: Path | None) -> list[str]:
    return path.read_text().splitlines() if path and path.exists() else []


if __name__ == "__main__":
    main()
