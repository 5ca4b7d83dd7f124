"""A tiny IconBench that ships with the package, for tests and to try protocols in a minute.

Cut from the emoji sample (``prompt_serve/assets/emoji``: 64 x 64, a team's own labels; licenses in
its ``LICENSES.md``). Learned on three styles; twemoji, which the embedded backbone knows, is held
out as a domain, and emojione, which it never saw, is the test part and a domain too.
"""

import csv
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.iconbench.selection import Row
from prompt_serve.research.iconbench.styles import KNOWN, KNOWN_STYLE, TEST, TRAIN
from prompt_serve.research.iconbench.suite import domain, image_set
from prompt_serve.research.iconbench.tasks import TEMPLATE
from prompt_serve.training.data.dataset import Split

TEST_STYLE = "emojione"
# In this order, which is no alphabet: base and new classes are its halves.
OUTDOORS = ("wildlife", "transport", "nature", "architecture", "weather")
INDOORS = ("people", "groceries", "office supplies", "emotion", "music", "gesture", "sports")
SAMPLE_TASKS = {
    "everything": ("Everything", (*OUTDOORS, *INDOORS)),
    "outdoors": ("Outdoors", OUTDOORS),
    "indoors": ("Indoors", INDOORS),
}


def sample_folder() -> Path:
    """The emoji sample, as installed."""
    return Path(str(resources.files("prompt_serve") / "assets" / "emoji"))


def sample_suite() -> Suite:
    """Three small tasks; 27 training images a class, none to validate on (held out of them)."""
    return Suite(
        name="icon-sample",
        datasets={name: partial(_dataset, name) for name in SAMPLE_TASKS},
        source="everything",
    )


def _dataset(name: str) -> BenchDataset:
    title, classes = SAMPLE_TASKS[name]
    folder, rows = sample_folder(), _rows(name, classes)
    train, test = ([row for row in rows if row.part == part] for part in (TRAIN, TEST))
    return BenchDataset(
        name=name,
        title=title,
        split=Split(train=image_set(train, classes, folder), test=image_set(test, classes, folder)),
        template=TEMPLATE,
        domains={
            style: domain(rows, style, classes, folder) for style in (KNOWN_STYLE, TEST_STYLE)
        },
    )


def _rows(task: str, classes: Sequence[str]) -> list[Row]:
    with (sample_folder() / "manifest.csv").open(newline="", encoding="utf-8") as file:
        found = [line for line in csv.DictReader(file) if line["label"] in classes]
    found.sort(key=lambda line: classes.index(line["label"]))
    return [
        Row(
            task=task,
            part=KNOWN if line["style"] == KNOWN_STYLE else line["split"],
            style=line["style"],
            class_name=line["label"],
            path=line["path"],
        )
        for line in found
    ]
