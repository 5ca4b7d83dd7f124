"""Named drawings: the icon sets used, the names of their icons, and their SVG.

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

# Color emoji are the most typical inputs, so all of them are used. The unseen styles are reserved
# for tests and reports: nothing is trained or selected on them.
TRAINED_EMOJI_STYLES = (*TRAIN_STYLES, VAL_STYLE, KNOWN_STYLE)
# The same drawings as an unseen style without colors, so excluded as well.
COPIES_OF_UNSEEN_STYLES = ("emojione-monotone",)

# Names of brand marks and file types do not describe the drawing.
LEFT_OUT_CATEGORIES = ("Logos", "Programming", "Archive / Unmaintained")
KEPT_ALTHOUGH_RETIRED = ("flat-color-icons", "fluent-emoji")
LEFT_OUT_LICENSES = ("NC", "GPL")

# Name parts that mark variants of a drawing; they are removed from names.
VARIANT_SUFFIXES = frozenset(
    """outline outlined filled fill line bold duotone sharp rounded round light thin regular solid
    linear broken twotone two tone variant alt off o 0 1 2 3 12 14 16 20 24 28 32 48
    w100 w200 w300 w400 baseline""".split()
)
VARIANT_PREFIXES = frozenset("outline baseline round sharp twotone bx bxs".split())
# Flags, faces and signs are numerous, similar in every style and easy, so they are sampled less.
RARE_GROUPS = ("Flags", "People", "Smileys", "Symbols", "Extras")
SKIN_TONES = ("medium-dark", "medium-light", "dark", "light", "medium", "default")


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One iconify set."""

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
        """Family of the set: `streamline-flex` and `streamline-plump` share their names."""
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
        """Return True if training samples it less often."""
        return self.group.startswith(RARE_GROUPS)


def list_sets(iconify: Path) -> list[IconSet]:
    """Return all sets for training or evaluation, in the order of their prefixes."""
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
    """Return the words of a key without variant marks: `home-filled-24` -> `home`."""
    words = key.replace("_", "-").split("-")
    while len(words) > 1 and words[-1] in VARIANT_SUFFIXES:
        words.pop()
    while len(words) > 1 and words[0] in VARIANT_PREFIXES:
        words = words[1:]
    return " ".join(words)


@lru_cache(maxsize=8)
def read_set(iconify: Path, prefix: str) -> tuple[Icon, ...]:
    """Return the distinct drawings of a set: no skin tones; one icon per name except for emoji."""
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
    """Return the sets that may be used for training."""
    return [icon_set for icon_set in list_sets(iconify) if icon_set.prefix not in UNSEEN_STYLES]


def trained_names(iconify: Path, min_families: int = 3) -> dict[str, set[str]]:
    """Map names that the projection learns to the families that draw them.

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
