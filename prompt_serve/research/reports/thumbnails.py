"""Thumbnails of the most confident mistakes, each beside an image of the predicted class."""

from pathlib import Path

import numpy as np
from markupsafe import Markup

from prompt_serve.evaluation_report.markup import percent
from prompt_serve.evaluation_report.thumbnails import thumbnail
from prompt_serve.measures import confident_mistakes
from prompt_serve.research.protocols.results import StoredPredictions
from prompt_serve.research.reports.page import Pairs, Picture

PAIRS = 6  # per test set
MOST = 96  # thumbnails per page, about 4 KB each


class Thumbnails:
    """Creates at most ``MOST`` small images, each once."""

    def __init__(self) -> None:
        self._done: dict[str, Picture] = {}

    def __call__(self, path: str) -> Picture:
        """Return the image at ``path``, or the reason why it cannot be shown."""
        if path not in self._done:
            if sum(one.source is not None for one in self._done.values()) >= MOST:
                return Picture(source=None, fault=f"left out: {MOST} images are on this page")
            made = thumbnail(Path(path))
            source = None if made.source is None else Markup(made.source)  # noqa: S704  # base64
            self._done[path] = Picture(source=source, fault=made.fault)
        return self._done[path]


def confused_pairs(predictions: StoredPredictions, title: str, thumbnails: Thumbnails) -> Pairs:
    """Show the most confident mistakes, each beside an image of the predicted class."""
    names = predictions.class_names
    pairs = []
    for image in most_confident_mistakes(predictions):
        true_class, predicted = int(predictions.labels[image]), int(predictions.predicted[image, 0])
        confidence = percent(float(predictions.probabilities[image, 0]))
        left = _described(
            thumbnails(predictions.paths[image]),
            f"{names[true_class]}",
            f"predicted {names[predicted]}, {confidence}\N{NO-BREAK SPACE}%",
            Path(predictions.paths[image]).name,
        )
        other = typical(predictions, predicted)
        right = (
            Picture(
                source=None, fault="no test image of this class", lines=[f"of {names[predicted]}"]
            )
            if other is None
            else _described(
                thumbnails(predictions.paths[other]), f"{names[predicted]}",
                _prediction(predictions, other),
                Path(predictions.paths[other]).name,
            )
        )  # fmt: skip
        pairs.append((left, right))
    caption = (
        "Left: a misclassified image. Right: the most confidently recognized image of the "
        "predicted class."
        if pairs
        else "Every image was classified correctly."
    )
    return Pairs(title="Most confused images", caption=caption, pairs=pairs)


def most_confident_mistakes(predictions: StoredPredictions) -> list[int]:
    """Return indexes of misclassified images, most confident first, one per pair of classes."""
    order = confident_mistakes(
        predictions.labels, predictions.predicted[:, 0], predictions.probabilities[:, 0]
    )
    chosen: dict[tuple[int, int], int] = {}
    for image in order:
        pair = int(predictions.labels[image]), int(predictions.predicted[image, 0])
        chosen.setdefault(pair, image)
    return list(chosen.values())[:PAIRS]


def typical(predictions: StoredPredictions, label: int) -> int | None:
    """Return the most confidently recognized image of a class.

    The first image of the class if none was recognized; None if the class has no image.
    """
    of_class = np.flatnonzero(predictions.labels == label)
    if not len(of_class):
        return None
    right = of_class[predictions.predicted[of_class, 0] == label]
    if not len(right):
        return int(of_class[0])
    return int(right[np.argmax(predictions.probabilities[right, 0])])


def _prediction(predictions: StoredPredictions, image: int) -> str:
    predicted = int(predictions.predicted[image, 0])
    confidence = percent(float(predictions.probabilities[image, 0]))
    if predicted == int(predictions.labels[image]):
        return f"correct, {confidence}\N{NO-BREAK SPACE}%"
    return f"predicted {predictions.class_names[predicted]}, {confidence}\N{NO-BREAK SPACE}%"


def _described(picture: Picture, *lines: str) -> Picture:
    return Picture(source=picture.source, fault=picture.fault, lines=lines)
