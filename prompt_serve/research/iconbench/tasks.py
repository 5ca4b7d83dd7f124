"""The eleven tasks, with the Unicode sub-groups of emoji that make up each class.

A class is a kind of thing ("sea animal"). The embedded backbones were trained on the names of
single emoji, not on these class names. Sub-groups with only one or two emoji, or that describe a
detail rather than a thing (a face with glasses), are left out. Classes follow Unicode's order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TEMPLATE = "a photo of a {}."  # the embedded backbones are trained with it


@dataclass(frozen=True, kw_only=True)
class IconTask:
    """A classification task and its classes."""

    name: str  # as on the command line: "animals"
    # Class name -> sub-groups or groups, as emojibase spells them.
    classes: Mapping[str, tuple[str, ...]]
    # Each emoji of these sub-groups is a class of its own; ``classes`` is empty then.
    named: tuple[str, ...] = ()


_GROUPS = {
    "face": ("smileys-emotion",),
    "person": ("people-body",),
    "animal or plant": ("animals-nature",),
    "food or drink": ("food-drink",),
    "travel or place": ("travel-places",),
    "activity": ("activities",),
    "object": ("objects",),
    "symbol": ("symbols",),
}
_SMILEYS = {
    "smiling face": ("face-smiling",),
    "affection": ("face-affection",),
    "tongue out": ("face-tongue",),
    "neutral or skeptical face": ("face-neutral-skeptical",),
    "sleepy face": ("face-sleepy",),
    "unwell face": ("face-unwell",),
    "concerned face": ("face-concerned",),
    "negative face": ("face-negative",),
    "costume face": ("face-costume",),
    "heart": ("heart",),
    "emotion": ("emotion",),
}
_PEOPLE = {
    "open hand": ("hand-fingers-open",),
    "partial hand": ("hand-fingers-partial",),
    "single finger": ("hand-single-finger",),
    "closed hand": ("hand-fingers-closed",),
    "hands": ("hands",),
    "body part": ("body-parts",),
    "person": ("person",),
    "gesture": ("person-gesture",),
    "role": ("person-role",),
    "activity": ("person-activity",),
    "sport": ("person-sport",),
    "family": ("family",),
}
_ANIMALS = {
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "reptile or amphibian": ("animal-amphibian", "animal-reptile"),
    "sea animal": ("animal-marine",),
    "bug": ("animal-bug",),
    "flower": ("plant-flower",),
    "plant": ("plant-other",),
}
_FOOD = {
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "prepared food": ("food-prepared",),
    "asian food": ("food-asian",),
    "sweet": ("food-sweet",),
    "drink": ("drink",),
    "dishware": ("dishware",),
}
_TRAVEL = {
    "map": ("place-map",),
    "landscape": ("place-geographic",),
    "building": ("place-building",),
    "religious building": ("place-religious",),
    "place": ("place-other",),
    "ground transport": ("transport-ground",),
    "water transport": ("transport-water",),
    "air transport": ("transport-air",),
    "time": ("time",),
    "sky or weather": ("sky-weather",),
}
_ACTIVITIES = {
    "event": ("event",),
    "award": ("award-medal",),
    "sports equipment": ("sport",),
    "game": ("game",),
    "craft": ("arts-crafts",),
}
_OBJECTS = {
    "clothing": ("clothing",),
    "sound": ("sound",),
    "music": ("music",),
    "musical instrument": ("musical-instrument",),
    "phone": ("phone",),
    "computer": ("computer",),
    "light or video": ("light-video",),
    "book or paper": ("book-paper",),
    "money": ("money",),
    "mail": ("mail",),
    "writing": ("writing",),
    "office": ("office",),
    "lock": ("lock",),
    "tool": ("tool",),
    "science or medicine": ("science", "medical"),
    "household": ("household",),
}
_SIGNS = {
    "transport sign": ("transport-sign",),
    "warning": ("warning",),
    "arrow": ("arrow",),
    "religion": ("religion",),
    "zodiac": ("zodiac",),
    "media button": ("av-symbol",),
    "punctuation": ("punctuation",),
    "other symbol": ("other-symbol",),
    "keycap": ("keycap",),
    "letters": ("alphanum",),
    "geometric shape": ("geometric",),
}
# In Unicode's order of the groups; no class name occurs twice.
_KINDS = {
    **_SMILEYS,
    **_PEOPLE,
    **_ANIMALS,
    **_FOOD,
    **_TRAVEL,
    **_ACTIVITIES,
    **_OBJECTS,
    **_SIGNS,
}

# In the order of the tables. The first, with all kinds, plays the role of ImageNet in the papers.
TASKS = (
    IconTask(name="kinds", classes=_KINDS),
    IconTask(name="groups", classes=_GROUPS),
    IconTask(name="animals", classes=_ANIMALS),
    IconTask(name="food", classes=_FOOD),
    IconTask(name="travel", classes=_TRAVEL),
    IconTask(name="objects", classes=_OBJECTS),
    IconTask(name="smileys", classes=_SMILEYS),
    IconTask(name="people", classes=_PEOPLE),
    IconTask(name="signs", classes=_SIGNS),
    IconTask(
        name="animal-names",
        classes={},
        named=(
            "animal-mammal",
            "animal-bird",
            "animal-amphibian",
            "animal-reptile",
            "animal-marine",
            "animal-bug",
        ),
    ),
    IconTask(
        name="food-names",
        classes={},
        named=("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"),
    ),
)
SOURCE = "kinds"
