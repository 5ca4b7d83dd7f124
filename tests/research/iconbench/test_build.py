"""From packages to images on disk and to the suite, and what a second run does."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prompt_serve.errors import DatasetInvalid, DatasetMissing
from prompt_serve.research.iconbench import build as build_module
from prompt_serve.research.iconbench.build import BuiltBenchmark, build_iconbench
from prompt_serve.research.iconbench.fetching import fetch
from prompt_serve.research.iconbench.packages import Pins, default_registry, pinned
from prompt_serve.research.iconbench.selection import digest
from prompt_serve.research.iconbench.suite import default_folder, icon_suite
from prompt_serve.research.iconbench.tasks import TASKS
from tests.cli.conftest import Run, run
from tests.research.iconbench.small import SIZE, Registry

__all__ = ["run"]  # a fixture


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


class Again:
    """Build once more, in the same folder."""

    def __init__(self, built: BuiltBenchmark, downloads: Path, pins: Pins) -> None:
        self.folder, self.downloads, self.pins = built.folder, downloads, pins

    def __call__(self, *, size: int | None = None, pins: Pins | None = None) -> BuiltBenchmark:
        return build_iconbench(
            self.folder,
            downloads=self.downloads,
            offline=True,
            size=size,
            workers=1,
            pins=pins or self.pins,
        )


@pytest.fixture
def again(built: BuiltBenchmark, downloads: Path, pins: Pins) -> Again:
    return Again(built, downloads, pins)


def test_drawings_are_on_white_in_the_size_asked_for(built: BuiltBenchmark) -> None:
    path = built.folder / "drawings" / "openmoji" / "cat.png"
    pixels = pixels_of(path)

    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[8, 8].tolist() == [20, 25, 90]  # the fill of the square
    assert len(list(built.folder.rglob("*.png"))) == len(built.selection.drawings)


def test_two_processes_draw_the_same_and_the_pins_would_know(
    built: BuiltBenchmark, tmp_path: Path, downloads: Path, pins: Pins
) -> None:
    other = build_iconbench(
        tmp_path / "other",
        downloads=downloads,
        offline=True,
        workers=2,
        pins=replace(pins, pixels=built.made.pixels),
    )

    assert other.made == built.made
    assert other.pixels_as_pinned is True
    assert built.pixels_as_pinned is False  # the small pins know no pixels


def test_a_second_run_draws_only_what_is_gone_or_damaged(
    built: BuiltBenchmark, again: Again
) -> None:
    drawn = built.folder / "drawings" / "noto"
    (drawn / "cat.png").unlink()
    (drawn / "frog.png").write_bytes((drawn / "frog.png").read_bytes()[:60])
    before = times(built.folder / "drawings" / "twemoji")

    second = again()

    assert second.made == built.made
    assert times(built.folder / "drawings" / "twemoji") == before
    assert pixels_of(drawn / "frog.png").shape == (SIZE, SIZE, 3)


def test_another_size_or_another_version_is_drawn_anew(built: BuiltBenchmark, again: Again) -> None:
    larger = again(size=24)
    assert larger.pixels_as_pinned is None
    assert pixels_of(built.folder / "drawings" / "noto" / "cat.png").shape == (24, 24, 3)

    (built.folder / "drawings" / "noto" / "drawn_from.txt").write_text("noto 0.9")
    before = times(built.folder / "drawings" / "noto")
    again(size=24)
    assert all(
        after > before[name] for name, after in times(built.folder / "drawings" / "noto").items()
    )


def test_packages_that_come_to_another_selection_are_refused(again: Again, pins: Pins) -> None:
    with pytest.raises(DatasetInvalid, match="expected 0000: this is another benchmark"):
        again(pins=replace(pins, selection="0000"))


def test_a_build_that_was_broken_off_is_not_finished(built: BuiltBenchmark) -> None:
    (built.folder / "built.json").unlink()

    with pytest.raises(DatasetMissing, match="prompt-serve data iconbench"):
        icon_suite(built.folder)


def test_a_folder_of_another_version_is_not_mistaken_for_this_one(built: BuiltBenchmark) -> None:
    with pytest.raises(DatasetInvalid, match="holds another IconBench"):
        icon_suite(built.folder)


def test_the_suite_has_styles_as_parts_and_domains(built: BuiltBenchmark) -> None:
    suite = icon_suite(built.folder, selection=built.made.selection)
    animals = suite.load("animals")

    assert (suite.name, suite.source) == ("icon", "kinds")
    assert list(suite.datasets) == [task.name for task in TASKS]
    assert animals.split.class_names == ("mammal", "bird", "reptile or amphibian")
    assert [len(part) for part in animals.split.parts.values()] == [29, 4, 14]
    assert {item.path.parent.name for item in animals.split.train.items} == {
        "noto", "openmoji", "fluent-emoji-flat", "fluent-emoji", "fluent-emoji-high-contrast",
        "streamline-emojis",
    }  # fmt: skip
    pooled = [animals.domains[s].items for s in ("emojione", "emojione-v1", "fxemoji")]
    assert animals.split.test is not None
    assert {i for items in pooled for i in items} == set(animals.split.test.items)
    assert all(item.path.is_file() for item in animals.domains["twemoji"].items)


def test_a_domain_has_only_the_classes_that_its_style_draws(built: BuiltBenchmark) -> None:
    kinds = icon_suite(built.folder, selection=built.made.selection).load("kinds")
    fxemoji = kinds.domains["fxemoji"]

    assert kinds.split.class_names[3:] == ("fruit", "prepared food")
    assert fxemoji.class_names == ("mammal", "bird", "reptile or amphibian")
    named = {(item.path.stem, fxemoji.class_names[item.label]) for item in fxemoji.items}
    assert ("crocodile", "reptile or amphibian") in named


def test_images_that_are_gone_are_said(built: BuiltBenchmark) -> None:
    suite = icon_suite(built.folder, selection=built.made.selection)
    shutil.rmtree(built.folder / "drawings" / "twemoji")

    with pytest.raises(DatasetInvalid, match=r"drawings/twemoji/dog\.png"):
        suite.load("animals")


def test_a_damaged_table_is_said(built: BuiltBenchmark) -> None:
    (built.folder / "manifest.csv").write_text("task,path\n")

    with pytest.raises(DatasetInvalid, match="its columns are task, path"):
        icon_suite(built.folder, selection=built.made.selection)


def test_the_licenses_are_beside_the_drawings(built: BuiltBenchmark) -> None:
    note = (built.folder / "LICENSES.md").read_text()

    assert "| `twemoji` | Twemoji | Somebody | MIT | https://example.org/twemoji |" in note
    assert "`@iconify-json/twemoji@1.0.0` | 7 |" in note


def test_the_command_ends_with_a_table(
    tmp_path: Path, registry: Registry, pins: Pins, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(build_module, "pinned", lambda: pins)
    monkeypatch.setenv("PROMPT_SERVE_CACHE", str(tmp_path))
    options = ("data", "iconbench", "--registry", registry.url, "--size", SIZE, "--workers", 1)

    answer = run(*options)

    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[0].split()[:5] == ["task", "classes", "train", "val", "test"]
    assert lines[3].split() == ["animals", "3", "29", "4", "14", "5", "4", "5", "5"]
    assert str(tmp_path / "iconbench") in answer.stdout
    assert "the pixels differ" in answer.stderr
    document = json.loads(run(*options, "--offline", "--json").stdout)
    assert document["tasks"][2] == {
        "name": "animals", "classes": 3, "train": 29, "val": 4, "test": 14,
        "twemoji": 5, "emojione": 4, "emojione-v1": 5, "fxemoji": 5,
    }  # fmt: skip


def test_the_folder_follows_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE", str(tmp_path))

    assert default_folder() == tmp_path / "iconbench"


@pytest.mark.skipif(
    "PROMPT_SERVE_TEST_NPM" not in os.environ,
    reason="fetches 36 MB from npm; set PROMPT_SERVE_TEST_NPM=1",
)
def test_the_real_packages_come_to_the_pinned_selection(tmp_path: Path) -> None:
    archives = fetch(pinned().packages, tmp_path, registry=default_registry())
    selection, _ = build_module.read_packages(archives)

    assert digest(selection) == pinned().selection
    for task in TASKS:
        if not task.named:
            rows = [row for row in selection.rows if row.task == task.name]
            assert list(dict.fromkeys(row.class_name for row in rows)) == list(task.classes)
