"""The emoji sample that ships with the package: 64 x 64 drawings in everyday classes.

Training images come from four styles the backbone was trained on, test images from one it never
saw. The classes are labels as a team makes them up for its own use. The backbone knows a crab and a
carrot by name, but only half of what this team means by "wildlife" and "groceries".
"""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pretraining.icons import Icon, list_sets, read_set
from pretraining.workdir import EMOJI_SAMPLE, WorkDir
from prompt_serve.research.iconbench.icons import slug
from prompt_serve.research.iconbench.svg_rendering import draw, on_background

TRAIN_STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
TEST_STYLE = "emojione"
SIZE = 64
TRAIN_IMAGES_PER_CLASS = 36
TEST_IMAGES_PER_CLASS = 24
SIZE_LIMIT_BYTES = 2_000_000
# Class name -> Unicode sub-groups. Names and sub-groups were selected on two other unseen styles
# (fxemoji, emojione-v1), not on the test style.
CLASSES = {
    "wildlife": (
        "animal-amphibian",
        "animal-bird",
        "animal-bug",
        "animal-mammal",
        "animal-marine",
        "animal-reptile",
    ),
    "nature": ("plant-flower", "plant-other"),
    "groceries": (
        "food-asian",
        "food-fruit",
        "food-prepared",
        "food-sweet",
        "food-vegetable",
    ),
    "transport": ("transport-air", "transport-ground", "transport-water"),
    "architecture": ("place-building", "place-religious"),
    "weather": ("sky-weather",),
    "people": (
        "person",
        "person-activity",
        "person-gesture",
        "person-role",
        "person-sport",
    ),
    "gesture": (
        "hand-fingers-closed",
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-prop",
        "hand-single-finger",
        "hands",
    ),
    "emotion": (
        "face-affection",
        "face-concerned",
        "face-costume",
        "face-glasses",
        "face-hand",
        "face-hat",
        "face-negative",
        "face-neutral-skeptical",
        "face-sleepy",
        "face-smiling",
        "face-tongue",
        "face-unwell",
    ),
    "music": ("music", "musical-instrument"),
    "office supplies": ("book-paper", "office", "writing"),
    "sports": ("sport",),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the manifest."""

    path: str
    label: str
    style: str
    split: str


def class_of_emoji(work: WorkDir) -> dict[str, str]:
    """Map keys to class names for all emoji of the selected sub-groups."""
    groups = json.loads((work.emojibase / "meta" / "groups.json").read_text())["subgroups"]
    emoji = json.loads((work.emojibase / "en" / "data.json").read_text())
    classes = {group: name for name, members in CLASSES.items() for group in members}
    found = {
        slug(entry["label"]): classes.get(groups[str(entry["subgroup"])])
        for entry in emoji
        if "subgroup" in entry
    }
    return {key: name for key, name in found.items() if name}


def drawings(work: WorkDir, style: str) -> dict[str, list[Icon]]:
    """Map class names to the style's icons."""
    classes = class_of_emoji(work)
    sorted_icons: dict[str, list[Icon]] = {name: [] for name in CLASSES}
    for icon in read_set(work.iconify, style):
        if icon.key in classes:
            sorted_icons[classes[icon.key]].append(icon)
    return sorted_icons


def choose(work: WorkDir, seed: int = 0) -> list[tuple[str, str, Icon]]:
    """Return (split, class name, icon) of every image; styles share each class evenly."""
    rng = np.random.default_rng(seed)
    by_style = {style: drawings(work, style) for style in (*TRAIN_STYLES, TEST_STYLE)}
    chosen: list[tuple[str, str, Icon]] = []
    for name in CLASSES:
        share = TRAIN_IMAGES_PER_CLASS // len(TRAIN_STYLES)
        for style in TRAIN_STYLES:
            icons = by_style[style][name]
            some = rng.permutation(len(icons))[:share]
            chosen += [("train", name, icons[i]) for i in sorted(some)]
        icons = by_style[TEST_STYLE][name]
        some = rng.permutation(len(icons))[:TEST_IMAGES_PER_CLASS]
        chosen += [("test", name, icons[i]) for i in sorted(some)]
    return chosen


def write_sample(work: WorkDir, folder: Path = EMOJI_SAMPLE) -> None:
    """Render the sample with its manifest and licenses."""
    for split in ("train", "test"):
        shutil.rmtree(folder / split, ignore_errors=True)
    entries = []
    for split, name, icon in choose(work):
        path = folder / split / name / f"{icon.prefix}__{icon.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_small(on_background(draw(icon.svg, SIZE)), path)
        entries.append(
            Entry(
                path=path.relative_to(folder).as_posix(), label=name, style=icon.prefix, split=split
            )
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "style", "split"])
        writer.writerows([e.path, e.label, e.style, e.split] for e in entries)
    (folder / "LICENSES.md").write_text(licenses(work, entries))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"emoji sample: {len(entries)} images, {size} bytes with manifest and licenses")
    if size > SIZE_LIMIT_BYTES:
        raise ValueError(f"The sample takes {size} bytes; at most {SIZE_LIMIT_BYTES} may ship.")


def save_small(image: Image.Image, path: Path) -> None:
    """Reduce to a palette of 64 colors: about 1.5 KB, barely distinguishable."""
    image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def licenses(work: WorkDir, entries: list[Entry]) -> str:
    """Return LICENSES.md: authors, licenses and modifications."""
    sets = {icon_set.prefix: icon_set for icon_set in list_sets(work.iconify)}
    lines = [
        "# Licenses of the emoji sample",
        "",
        "The drawings belong to the projects below and stay under their licenses. Modification:",
        "rendered to PNG at 64x64 on white, with a palette of at most 64 colors. Source of the",
        "SVG files: npm `@iconify/json` 2.2.535. The file name says the style: `noto__crab.png`.",
        "",
        "| style | set | author | license | source | images |",
        "|---|---|---|---|---|---|",
    ]
    for style in dict.fromkeys(entry.style for entry in entries):
        found, count = sets[style], sum(entry.style == style for entry in entries)
        lines.append(
            f"| `{style}` | {found.title} | {found.author} | {found.license} | "
            f"{found.url} | {count} |"
        )
    lines += [
        "",
        "The `emojione` drawings are in `test/` only: the embedded backbone never saw",
        "that style.",
        "",
        "License texts: Apache-2.0 https://www.apache.org/licenses/LICENSE-2.0,",
        "CC-BY-4.0 https://creativecommons.org/licenses/by/4.0/,",
        "CC-BY-SA-4.0 https://creativecommons.org/licenses/by-sa/4.0/,",
        "MIT https://opensource.org/license/mit.",
        "",
    ]
    return "\n".join(lines)
