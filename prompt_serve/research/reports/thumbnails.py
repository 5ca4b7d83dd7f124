"""Images that were confidently taken for another class, small, beside one of that class."""

import base64
import io
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from prompt_serve.errors import ImageInvalid, ImageTooLarge
from prompt_serve.preprocess import decode_image
from prompt_serve.research.protocols.results import Answers
from prompt_serve.research.reports.page import Pairs, Picture, percent

PAIRS = 6  # of a test set
MOST = 96  # thumbnails of a page, some 4 KB each
SIDE = 128  # pixels
QUALITY = 82
MAX_FILE_BYTES = 64 * 2**20


class Thumbnails:
    """Makes at most ``MOST`` small images, each once."""

    def __init__(self) -> None:
        self._done: dict[str, Picture] = {}

    def __call__(self, path: str) -> Picture:
        """The image at ``path``, or why it cannot be shown."""
        if path not in self._done:
            if sum(one.source is not None for one in self._done.values()) >= MOST:
                return Picture(source=None, fault=f"left out: {MOST} images are on this page")
            self._done[path] = _thumbnail(Path(path))
        return self._done[path]


def confused_pairs(answers: Answers, title: str, thumbnails: Thumbnails) -> Pairs:
    """The surest wrong answers, one for each pair of classes, each beside an image of the class
    that was answered."""
    names = answers.class_names
    pairs = []
    for image in surest_mistakes(answers):
        own, said = int(answers.labels[image]), int(answers.predicted[image, 0])
        sure = percent(float(answers.probabilities[image, 0]))
        left = _described(
            thumbnails(answers.paths[image]),
            f"{names[own]}",
            f"answered {names[said]}, {sure}\N{NO-BREAK SPACE}%",
            Path(answers.paths[image]).name,
        )
        other = typical(answers, said)
        right = (
            Picture(
                source=None, fault="no test image of this class", lines=[f"of {names[said]}"]
            )
            if other is None
            else _described(
                thumbnails(answers.paths[other]), f"{names[said]}", _answer(answers, other),
                Path(answers.paths[other]).name,
            )
        )  # fmt: skip
        pairs.append((left, right))
    caption = (
        "To the left an image that was surely taken for another class; to the right one of the "
        "class that was answered, the one most surely recognized."
        if pairs
        else "Every image was answered rightly."
    )
    return Pairs(title="Most confused images", caption=caption, pairs=pairs)


def surest_mistakes(answers: Answers) -> list[int]:
    """Numbers of the wrongly answered images, the surest of each pair of classes, surest first."""
    wrong = np.flatnonzero(answers.predicted[:, 0] != answers.labels)
    order = wrong[np.argsort(-answers.probabilities[wrong, 0], kind="stable")]
    chosen: dict[tuple[int, int], int] = {}
    for image in order.tolist():
        pair = int(answers.labels[image]), int(answers.predicted[image, 0])
        chosen.setdefault(pair, image)
    return list(chosen.values())[:PAIRS]


def typical(answers: Answers, label: int) -> int | None:
    """The image of a class that was most surely recognized; any of it where none was; None where
    there is none."""
    of_class = np.flatnonzero(answers.labels == label)
    if not len(of_class):
        return None
    right = of_class[answers.predicted[of_class, 0] == label]
    if not len(right):
        return int(of_class[0])
    return int(right[np.argmax(answers.probabilities[right, 0])])


def _answer(answers: Answers, image: int) -> str:
    said = int(answers.predicted[image, 0])
    sure = percent(float(answers.probabilities[image, 0]))
    if said == int(answers.labels[image]):
        return f"rightly answered, {sure}\N{NO-BREAK SPACE}%"
    return f"answered {answers.class_names[said]}, {sure}\N{NO-BREAK SPACE}%"


def _described(picture: Picture, *lines: str) -> Picture:
    return Picture(source=picture.source, fault=picture.fault, lines=lines)


def _thumbnail(path: Path) -> Picture:
    try:
        if not path.is_file():
            return Picture(source=None, fault="the image file is not there")
        if path.stat().st_size > MAX_FILE_BYTES:
            return Picture(source=None, fault="the image file is too large")
        image = decode_image(path.read_bytes())
    except (ImageInvalid, ImageTooLarge, OSError, ValueError):
        return Picture(source=None, fault="the image file cannot be read")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY, optimize=True)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(source=Markup(f"data:image/jpeg;base64,{text}"))  # noqa: S704  # base64 alone
