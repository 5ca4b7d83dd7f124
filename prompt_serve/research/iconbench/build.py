"""Build IconBench: download packages, select drawings, render them, write manifest and licenses."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_serve.errors import DatasetInvalid
from prompt_serve.research.iconbench.fetching import fetch, read_members
from prompt_serve.research.iconbench.image_files import draw_files, forget_others
from prompt_serve.research.iconbench.licenses import license_note
from prompt_serve.research.iconbench.manifest import BuildRecord, write_built
from prompt_serve.research.iconbench.packages import Package, Pins, default_registry, pinned
from prompt_serve.research.iconbench.selection import (
    ManifestRow,
    Selection,
    digest,
    read_emoji,
    select,
)
from prompt_serve.research.iconbench.styles import DOMAIN_STYLES, TEST, TRAIN, VAL
from prompt_serve.research.iconbench.suite import default_folder
from prompt_serve.research.iconbench.svg_rendering import RESVG
from prompt_serve.research.iconbench.tasks import TASKS
from prompt_serve.training.progress import SILENT, Progress

logger = logging.getLogger(__name__)

LICENSES = "LICENSES.md"


@dataclass(frozen=True, kw_only=True)
class BuiltBenchmark:
    """Result of a build."""

    folder: Path
    selection: Selection
    made: BuildRecord
    # True if the pixels are those of the published figures; None for another size.
    pixels_as_pinned: bool | None

    def counts(self) -> dict[str, dict[str, int]]:
        """Return, by task, the number of classes and of images per part and domain."""
        return {task.name: _counts(task.name, self.selection.rows) for task in TASKS}


def build_iconbench(
    folder: Path | None = None,
    *,
    downloads: Path | None = None,
    registry: str | None = None,
    offline: bool = False,
    size: int | None = None,
    workers: int = 2,
    progress: Progress = SILENT,
    pins: Pins | None = None,
) -> BuiltBenchmark:
    """Download and render what is missing, and write the manifest.

    Args:
        folder: output folder; None: iconbench in the user's cache.
        downloads: folder of the packages; None: downloads in the default ``folder``.
        registry: npm registry; None: $NPM_CONFIG_REGISTRY or npm's own.
        offline: download nothing.
        size: side length of the images in pixels; None: as pinned.
        workers: number of processes that render.
        progress: shows progress bars.
        pins: benchmark to build; None: the one of this version.

    Raises:
        DatasetMissing: a package is not available as it was pinned.
        DatasetInvalid: the packages yield another selection than the pinned one.
    """
    pins = pins or pinned()
    folder, size = folder or default_folder(), size or pins.size
    downloads = downloads or default_folder() / "downloads"
    with progress.bar("packages", sum(p.size_bytes for p in pins.packages), "B") as advance:
        archives = fetch(
            pins.packages,
            downloads,
            registry=registry or default_registry(),
            offline=offline,
            advance=advance,
        )
    selection, infos = read_packages(archives)
    if (came := digest(selection)) != pins.selection:
        raise DatasetInvalid(
            f"The packages yield the selection {came}, expected {pins.selection}: this is another "
            f"benchmark. Reinstall prompt-serve if its files may have changed."
        )
    pixels = _draw(selection, folder, size, workers, progress, archives)
    counts = Counter(drawing.style for drawing in selection.drawings)
    (folder / LICENSES).write_text(license_note(infos, counts, size), encoding="utf-8")
    made = BuildRecord(
        selection=came,
        pixels=pixels,
        size=size,
        resvg=RESVG,
        packages=[str(package) for package in pins.packages],
    )
    write_built(folder, selection.rows, made)
    as_pinned = pixels == pins.pixels if size == pins.size else None
    return BuiltBenchmark(folder=folder, selection=selection, made=made, pixels_as_pinned=as_pinned)


def _counts(task: str, rows: Iterable[ManifestRow]) -> dict[str, int]:
    of_task = [row for row in rows if row.task == task]
    parts = Counter(row.part for row in of_task)
    styles = Counter(row.style for row in of_task)
    return {
        "classes": len({row.class_name for row in of_task}),
        **{part: parts[part] for part in (TRAIN, VAL, TEST)},
        **{style: styles[style] for style in DOMAIN_STYLES},
    }


def read_packages(
    archives: Mapping[Package, Path],
) -> tuple[Selection, dict[str, tuple[Package, Mapping[str, Any]]]]:
    """Return the selection and, by style, its package and iconify's metadata."""
    sets, infos = {}, {}
    for package, path in archives.items():
        if package.style:
            members = read_members(package, path, ("icons.json", "info.json"))
            sets[package.style] = json.loads(members["icons.json"])
            infos[package.style] = (package, json.loads(members["info.json"]))
        else:
            members = read_members(package, path, ("meta/groups.json", "en/data.json"))
            emoji = read_emoji(
                json.loads(members["meta/groups.json"]), json.loads(members["en/data.json"])
            )
    return select(emoji, sets), infos


def _draw(
    selection: Selection,
    folder: Path,
    size: int,
    workers: int,
    progress: Progress,
    archives: Mapping[Package, Path],
) -> str:
    for package in archives:
        if package.style:
            source = f"{package} {package.integrity} {size} px resvg {RESVG}\n"
            forget_others(folder, package.style, source)
    with progress.bar("drawings", len(selection.drawings), "image") as advance:
        return draw_files(selection.drawings, folder, size=size, workers=workers, advance=advance)
