"""The eleven tasks are constants: their names, their order, what each is made of."""

from itertools import combinations

from prompt_serve.prompts.prompt_file import check_class_names
from prompt_serve.research.iconbench.packages import pinned
from prompt_serve.research.iconbench.styles import (
    DOMAIN_STYLES,
    STYLES,
    TRAIN_STYLES,
    UNSEEN_STYLES,
    part_of,
)
from prompt_serve.research.iconbench.tasks import SOURCE, TASKS

SEVEN = ("smileys", "people", "animals", "food", "travel", "objects", "signs")
BY_NAME = {task.name: task for task in TASKS}


def test_names_and_order_do_not_change() -> None:
    assert list(BY_NAME) == [
        "kinds",
        "groups",
        "animals",
        "food",
        "travel",
        "objects",
        "smileys",
        "people",
        "signs",
        "animal-names",
        "food-names",
    ]
    assert SOURCE == "kinds"
    assert {name: len(task.classes) for name, task in BY_NAME.items() if not task.named} == {
        "kinds": 79,
        "groups": 8,
        "animals": 7,
        "food": 7,
        "travel": 10,
        "objects": 16,
        "smileys": 11,
        "people": 12,
        "signs": 11,
    }


def test_no_emoji_is_in_two_classes_of_a_task_or_in_two_of_the_seven_tasks() -> None:
    for task in TASKS:
        members = [group for groups in task.classes.values() for group in groups]
        assert len(members) == len(set(members))
    for one, other in combinations(SEVEN, 2):
        ones = {group for groups in BY_NAME[one].classes.values() for group in groups}
        others = {group for groups in BY_NAME[other].classes.values() for group in groups}
        assert not ones & others


def test_the_wide_task_holds_the_classes_of_the_others_under_the_same_names() -> None:
    kinds = BY_NAME["kinds"].classes

    for name in SEVEN:
        assert BY_NAME[name].classes.items() <= kinds.items()
    assert sum(len(BY_NAME[name].classes) for name in SEVEN) == len(kinds) - 5  # activities
    check_class_names(tuple(kinds))


def test_a_style_has_one_part_and_the_unseen_are_only_tested_on() -> None:
    assert len(set(STYLES)) == 11
    assert "emojione-monotone" not in STYLES
    assert [style for style in STYLES if part_of(style) == "train"] == list(TRAIN_STYLES)
    assert {part_of(style) for style in UNSEEN_STYLES} == {"test"}
    assert not {part_of(style) for style in DOMAIN_STYLES} & {"train", "val"}


def test_every_style_is_pinned_by_a_checksum_of_512_bits() -> None:
    packages = pinned().packages

    assert {package.style for package in packages} == {*STYLES, ""}
    assert {len(package.integrity) for package in packages} == {len("sha512-") + 88}
