"""A tiny IconBench that ships with the package, for tests and for trying protocols in a minute.

A subset of the emoji sample (``prompt_serve/assets/emoji``: 64 x 64 pixels, labels made for it;
licenses in its ``LICENSES.md``). Three styles are for training. twemoji, which the embedded
backbone was pretrained on, is a domain; emojione, which it has not seen, is the test part and also
a domain.
"""

import csv
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.iconbench.selection import ManifestRow
from prompt_serve.research.iconbench.styles import KNOWN, KNOWN_STYLE, TEST, TRAIN
from prompt_serve.research.iconbench.suite import domain, image_set
from prompt_serve.research.iconbench.tasks import TEMPLATE
from prompt_serve.training.data.dataset import Split

TEST_STYLE = "emojione"
# Deliberately not alphabetical: base and new classes are the halves of this order.
OUTDOORS = ("wildlife", "transport", "nature", "architecture", "weather")
INDOORS = ("people", "groceries", "office supplies", "emotion", "music", "gesture", "sports")
SAMPLE_TASKS = {
    "everything": (*OUTDOORS, *INDOORS),
    "outdoors": OUTDOORS,
    "indoors": INDOORS,
}


def sample_folder() -> Path:
    """Return the folder of the installed emoji sample."""
    return Path(str(resources.files("prompt_serve") / "assets" / "emoji"))


def sample_suite() -> Suite:
    """Return three small tasks with 27 training images per class.

    Validation images are held out of the training images.
    """
    return Suite(
        name="icon-sample",
        datasets={name: partial(_dataset, name) for name in SAMPLE_TASKS},
        source="everything",
    )


def _dataset(name: str) -> BenchDataset:
    classes = SAMPLE_TASKS[name]
    folder, rows = sample_folder(), _rows(name, classes)
    train, test = ([row for row in rows if row.part == part] for part in (TRAIN, TEST))
    return BenchDataset(
        name=name,
        split=Split(train=image_set(train, classes, folder), test=image_set(test, classes, folder)),
        template=TEMPLATE,
        domains={
            style: domain(rows, style, classes, folder) for style in (KNOWN_STYLE, TEST_STYLE)
        },
    )


def _rows(task: str, classes: Sequence[str]) -> list[ManifestRow]:
    with (sample_folder() / "manifest.csv").open(newline="", encoding="utf-8") as file:
        found = [line for line in csv.DictReader(file) if line["label"] in classes]
    found.sort(key=lambda line: classes.index(line["label"]))
    return [
        ManifestRow(
            task=task,
            part=KNOWN if line["style"] == KNOWN_STYLE else line["split"],
            style=line["style"],
            class_name=line["label"],
            path=line["path"],
        )
        for line in found
    ]
