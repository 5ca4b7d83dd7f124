"""Assign drawings to tasks, parts and classes: a pure function of the packages."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_serve.research.iconbench.icons import slug, whole_svg
from prompt_serve.research.iconbench.styles import (
    KNOWN_STYLE,
    STYLES,
    TRAIN_STYLES,
    VAL_STYLE,
    part_of,
)
from prompt_serve.research.iconbench.tasks import TASKS, IconTask

# An emoji can be a class of its own only if all these styles have it, for training, validation and
# test images.
NAMED_IN = (VAL_STYLE, KNOWN_STYLE, "emojione", "emojione-v1")
NAMED_IN_TRAIN_STYLES = 5


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji with its Unicode group and sub-group."""

    key: str  # "hot-dog"
    group: str  # "food-drink"
    subgroup: str  # "food-prepared"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One style's drawing of an emoji."""

    style: str
    key: str
    svg: str  # document from ``icons.whole_svg``

    @property
    def path(self) -> str:
        """Path relative to the benchmark's folder."""
        return f"drawings/{self.style}/{self.key}.png"


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One image of one task: a line of the manifest."""

    task: str
    part: str
    style: str
    class_name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The whole benchmark before rendering."""

    rows: tuple[ManifestRow, ...]
    drawings: tuple[Drawing, ...]  # all drawings of the rows, without duplicates


def read_emoji(groups: Mapping[str, Any], data: Sequence[Mapping[str, Any]]) -> tuple[Emoji, ...]:
    """Return all emoji in Unicode's order, without skin tones and ambiguous names.

    Args:
        groups: emojibase's ``meta/groups.json``.
        data: emojibase's ``en/data.json``, which lists skin tones below their emoji.
    """
    sorted_in = sorted((e for e in data if "subgroup" in e), key=lambda e: e["order"])
    found = [
        Emoji(
            key=slug(entry["label"]),
            group=groups["groups"][str(entry["group"])],
            subgroup=groups["subgroups"][str(entry["subgroup"])],
        )
        for entry in sorted_in
    ]
    # "keycap: #" and "keycap: *" are both `keycap`.
    times = Counter(emoji.key for emoji in found)
    return tuple(emoji for emoji in found if times[emoji.key] == 1)


def select(
    emoji: Sequence[Emoji],
    sets: Mapping[str, Mapping[str, Any]],
    tasks: Sequence[IconTask] = TASKS,
) -> Selection:
    """Assign the drawings to tasks, parts and classes.

    Args:
        emoji: in Unicode's order.
        sets: style -> iconify's ``icons.json``.
        tasks: in the order of the tables.
    """
    keys_of = {style: _keys(sets[style]) for style in STYLES}
    rows: list[ManifestRow] = []
    for task in tasks:
        classes = _named(task, emoji, keys_of) if task.named else _classes(task, emoji)
        rows += _rows(task, classes, keys_of)
    paths = dict.fromkeys((row.style, _key(row)) for row in rows)
    return Selection(
        rows=tuple(rows),
        drawings=tuple(_drawing(style, key, sets[style]) for style, key in paths),
    )


def digest(selection: Selection) -> str:
    """Return the sha256, in hexadecimal, over every row and the SVG of every drawing."""
    hashed = hashlib.sha256()
    for row in selection.rows:
        line = [row.task, row.part, row.style, row.class_name, row.path]
        hashed.update(json.dumps(line).encode() + b"\n")
    for drawing in selection.drawings:
        body = hashlib.sha256(drawing.svg.encode()).hexdigest()
        hashed.update(f"{drawing.path} {body}\n".encode())
    return hashed.hexdigest()


def _keys(document: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(key for key, icon in document["icons"].items() if not icon.get("hidden"))


def _classes(task: IconTask, emoji: Sequence[Emoji]) -> dict[str, list[str]]:
    """Map class names to keys, both in Unicode's order."""
    class_of = {group: name for name, groups in task.classes.items() for group in groups}
    classes: dict[str, list[str]] = {}
    for one in emoji:
        name = class_of.get(one.subgroup) or class_of.get(one.group)
        if name:
            classes.setdefault(name, []).append(one.key)
    return classes


def _named(
    task: IconTask, emoji: Sequence[Emoji], keys_of: Mapping[str, frozenset[str]]
) -> dict[str, list[str]]:
    return {
        one.key.replace("-", " "): [one.key]
        for one in emoji
        if one.subgroup in task.named
        and all(one.key in keys_of[style] for style in NAMED_IN)
        and sum(one.key in keys_of[style] for style in TRAIN_STYLES) >= NAMED_IN_TRAIN_STYLES
    }


def _rows(
    task: IconTask, classes: Mapping[str, Sequence[str]], keys_of: Mapping[str, frozenset[str]]
) -> list[ManifestRow]:
    """Return rows class by class, so that any part of them has the classes in Unicode's order."""
    return [
        ManifestRow(
            task=task.name,
            part=part_of(style),
            style=style,
            class_name=name,
            path=f"drawings/{style}/{key}.png",
        )
        for name, keys in classes.items()
        for style in STYLES
        for key in keys
        if key in keys_of[style]
    ]


def _key(row: ManifestRow) -> str:
    return row.path.rpartition("/")[2].removesuffix(".png")


def _drawing(style: str, key: str, document: Mapping[str, Any]) -> Drawing:
    return Drawing(style=style, key=key, svg=whole_svg(document["icons"][key], document))
