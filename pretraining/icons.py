"""Named drawings: which icon sets are used, what an icon's name says, and how it is drawn.

Source: npm `@iconify/json`, one JSON file per set with the SVG body of every icon.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prompt_serve.research.iconbench.icons import whole_svg
from prompt_serve.research.iconbench.styles import (
    KNOWN_STYLE,
    TRAIN_STYLES,
    UNSEEN_STYLES,
    VAL_STYLE,
)

# Emoji drawings in color are what the product meets most, so they are used in full. The unseen
# styles are those of tests and reports: nothing is ever learned or selected on them.
TRAINED_EMOJI_STYLES = (*TRAIN_STYLES, VAL_STYLE, KNOWN_STYLE)
# The same drawings as an unseen style, without their colors: left out as well.
COPIES_OF_UNSEEN_STYLES = ("emojione-monotone",)

# Brand marks and file types carry names that say nothing about what is drawn.
LEFT_OUT_CATEGORIES = ("Logos", "Programming", "Archive / Unmaintained")
KEPT_ALTHOUGH_RETIRED = ("flat-color-icons", "fluent-emoji")
LEFT_OUT_LICENSES = ("NC", "GPL")

# How a set names its variants of one drawing; without them the name says what is drawn.
VARIANT_SUFFIXES = frozenset(
    """outline outlined filled fill line bold duotone sharp rounded round light thin regular solid
    linear broken twotone two tone variant alt off o 0 1 2 3 12 14 16 20 24 28 32 48
    w100 w200 w300 w400 baseline""".split()
)
VARIANT_PREFIXES = frozenset("outline baseline round sharp twotone bx bxs".split())
# Flags, faces and signs are many, alike in every style and easy: training shows them less often.
RARE_GROUPS = ("Flags", "People", "Smileys", "Symbols", "Extras")
SKIN_TONES = ("medium-dark", "medium-light", "dark", "light", "medium", "default")


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One set as iconify lists it."""

    prefix: str
    title: str
    author: str
    license: str  # SPDX
    url: str
    color: bool
    category: str

    @property
    def is_emoji(self) -> bool:
        return self.prefix in TRAINED_EMOJI_STYLES + UNSEEN_STYLES

    @property
    def family(self) -> str:
        """Sets of one family (`streamline-flex`, `streamline-plump`) share their names."""
        return self.prefix.split("-")[0]


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One drawing: `key` is unique in its set, `name` is plain words."""

    prefix: str
    key: str
    name: str
    svg: str
    group: str = ""  # the set's own category, e.g. "Food & Drink"

    @property
    def is_rare(self) -> bool:
        """Whether training shows it less often."""
        return self.group.startswith(RARE_GROUPS)


def list_sets(iconify: Path) -> list[IconSet]:
    """All sets that may be used or measured, in the order of their prefixes."""
    collections = json.loads((iconify / "collections.json").read_text())
    return [
        _icon_set(prefix, info)
        for prefix, info in sorted(collections.items())
        if _is_usable(prefix, info)
    ]


def _icon_set(prefix: str, info: dict) -> IconSet:  # type: ignore[type-arg]  # JSON
    return IconSet(
        prefix=prefix,
        title=info["name"],
        author=info["author"]["name"],
        license=info["license"].get("spdx") or info["license"]["title"],
        url=info["author"].get("url") or info["license"].get("url", ""),
        color=bool(info.get("palette")),
        category=info.get("category") or "",
    )


def _is_usable(prefix: str, info: dict) -> bool:  # type: ignore[type-arg]  # JSON
    license = info["license"].get("spdx") or info["license"]["title"]
    if any(mark in license for mark in LEFT_OUT_LICENSES) or prefix in COPIES_OF_UNSEEN_STYLES:
        return False
    retired = info.get("hidden") or info.get("category") in (None, *LEFT_OUT_CATEGORIES)
    return not retired or prefix in KEPT_ALTHOUGH_RETIRED


def plain_name(key: str) -> str:
    """`home-filled-24` -> `home`: the words of a key without the marks of a variant."""
    words = key.replace("_", "-").split("-")
    while len(words) > 1 and words[-1] in VARIANT_SUFFIXES:
        words.pop()
    while len(words) > 1 and words[0] in VARIANT_PREFIXES:
        words = words[1:]
    return " ".join(words)


@lru_cache(maxsize=8)
def read_set(iconify: Path, prefix: str) -> tuple[Icon, ...]:
    """Every distinct drawing of a set: no skin tones, and outside emoji one icon per name."""
    document = json.loads((iconify / "json" / f"{prefix}.json").read_text())
    group_of = {
        key: group for group, keys in document.get("categories", {}).items() for key in keys
    }
    emoji = prefix in TRAINED_EMOJI_STYLES + UNSEEN_STYLES
    icons: dict[str, Icon] = {}
    for key, body in document["icons"].items():
        if body.get("hidden") or _is_skin_tone(key, document["icons"]):
            continue
        name = key.replace("-", " ") if emoji else plain_name(key)
        if name not in icons:
            icons[name] = Icon(
                prefix=prefix,
                key=key,
                name=name,
                svg=whole_svg(body, document),
                group=group_of.get(key, ""),
            )
    return tuple(icons.values())


def _is_skin_tone(key: str, keys: dict) -> bool:  # type: ignore[type-arg]  # JSON
    if "skin-tone" in key:
        return True
    for tone in SKIN_TONES:
        base = key.removesuffix(f"-{tone}")
        if base != key:
            # `waving-hand-dark` beside `waving-hand` or `waving-hand-light`.
            return base in keys or any(
                f"{base}-{other}" in keys for other in SKIN_TONES if other != tone
            )
    return False


def trained_sets(iconify: Path) -> list[IconSet]:
    """The sets that training may see."""
    return [icon_set for icon_set in list_sets(iconify) if icon_set.prefix not in UNSEEN_STYLES]


def trained_names(iconify: Path, min_families: int = 3) -> dict[str, set[str]]:
    """Name -> families that draw it, for the names the projection learns.

    A name that one family alone uses is often its private jargon, so outside emoji a name has to
    occur in `min_families`.
    """
    families: dict[str, set[str]] = defaultdict(set)
    in_emoji: set[str] = set()
    for icon_set in trained_sets(iconify):
        for icon in read_set(iconify, icon_set.prefix):
            families[icon.name].add(icon_set.family)
            if icon_set.is_emoji:
                in_emoji.add(icon.name)
    return {
        name: found
        for name, found in families.items()
        if len(found) >= min_families or name in in_emoji
    }
