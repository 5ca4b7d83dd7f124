"""IconBench as a suite for protocols."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.iconbench.manifest import AGAIN, read_built, read_rows
from prompt_serve.research.iconbench.packages import pinned
from prompt_serve.research.iconbench.selection import ManifestRow
from prompt_serve.research.iconbench.styles import DOMAIN_STYLES, TEST, TRAIN, VAL
from prompt_serve.research.iconbench.tasks import SOURCE, TASKS, TEMPLATE, IconTask
from prompt_serve.training.data.cache_folder import cache_folder
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split, limited


def default_folder() -> Path:
    """Return ``$PROMPT_SERVE_CACHE/iconbench``, or ``prompt-serve/iconbench`` in the user cache."""
    return cache_folder("iconbench")


def icon_suite(folder: Path | None = None, *, selection: str | None = None) -> Suite:
    """Return the eleven tasks from the folder that ``prompt-serve data iconbench`` has built.

    Six styles are for training and a seventh for validation. The test part has three styles that
    the embedded backbone has not seen; each of them is also a domain, and so is one held-out style
    that the backbone was pretrained on.

    Args:
        folder: built folder; None: the one in the user's cache.
        selection: checksum of the benchmark; None: that of this version.

    Raises:
        DatasetMissing: the folder has not been built.
        DatasetInvalid: another version built it, or it is damaged.
    """
    folder = folder or default_folder()
    made, expected = read_built(folder), selection or pinned().selection
    if made.selection != expected:
        raise DatasetInvalid(
            f"{folder} holds another IconBench (selection {made.selection[:12]}, expected "
            f"{expected[:12]}), whose figures cannot be compared. {AGAIN}"
        )
    rows: dict[str, list[ManifestRow]] = {task.name: [] for task in TASKS}
    for row in read_rows(folder):
        rows[row.task].append(row)
    return Suite(
        name="icon",
        datasets={
            task.name: partial(_dataset, task, tuple(rows[task.name]), folder) for task in TASKS
        },
        source=SOURCE,
    )


def _dataset(task: IconTask, rows: Sequence[ManifestRow], folder: Path) -> BenchDataset:
    if faults := [row.path for row in rows if not (folder / row.path).is_file()]:
        raise DatasetInvalid(
            f"Images of IconBench's {task.name!r} are missing in {folder}. {AGAIN}", limited(faults)
        )
    names = tuple(dict.fromkeys(row.class_name for row in rows if row.part == TRAIN))
    parts = {
        part: image_set((row for row in rows if row.part == part), names, folder)
        for part in (TRAIN, VAL, TEST)
    }
    return BenchDataset(
        name=task.name,
        split=Split(train=parts[TRAIN], val=parts[VAL], test=parts[TEST]),
        template=TEMPLATE,
        domains={style: domain(rows, style, names, folder) for style in DOMAIN_STYLES},
    )


def domain(rows: Iterable[ManifestRow], style: str, names: Sequence[str], folder: Path) -> ImageSet:
    """Return one style's images over the classes that it draws, in the order of ``names``."""
    chosen = [row for row in rows if row.style == style]
    drawn = {row.class_name for row in chosen}
    return image_set(chosen, tuple(name for name in names if name in drawn), folder)


def image_set(rows: Iterable[ManifestRow], names: Sequence[str], folder: Path) -> ImageSet:
    """Return the images of some rows, in their order."""
    labels = {name: label for label, name in enumerate(names)}
    items = (LabeledImage(folder / row.path, labels[row.class_name]) for row in rows)
    return ImageSet(class_names=tuple(names), items=tuple(items))
