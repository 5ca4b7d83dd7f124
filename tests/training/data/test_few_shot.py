"""The few-shot draw, against CoOp's written out with the global generator of ``random``."""

import random
from collections import Counter
from pathlib import Path

import pytest

from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split
from prompt_serve.training.data.few_shot import few_shot, shot_faults

NAMES = tuple("abcde")


def images(rng: random.Random, count: int, prefix: str) -> ImageSet:
    """Labels in a jumbled order: that of first appearance is not the sorted one."""
    labels = [rng.randrange(len(NAMES)) for _ in range(count)]
    items = tuple(LabeledImage(Path(f"{prefix}{n}"), label) for n, label in enumerate(labels))
    return ImageSet(class_names=NAMES, items=items)


def coop_draw(items: tuple[LabeledImage, ...], k: int) -> list[LabeledImage]:
    """Dassl's generate_fewshot_dataset, with the global state that CoOp seeds."""
    tracker: dict[int, list[LabeledImage]] = {}
    for item in items:
        tracker.setdefault(item.label, []).append(item)
    drawn = []
    for group in tracker.values():
        drawn.extend(random.sample(group, k) if len(group) >= k else group)
    return drawn


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_the_draw_is_coops(seed: int, shots: int) -> None:
    source = random.Random(7)
    split = Split(
        train=images(source, 120, "train"),
        val=images(source, 40, "val"),
        test=images(source, 50, "test"),
    )
    random.seed(seed)
    train = coop_draw(split.train.items, shots)
    assert split.val is not None
    val = coop_draw(split.val.items, min(shots, 4))

    drawn = few_shot(split, shots=shots, seed=seed)

    assert list(drawn.train.items) == train
    assert drawn.val is not None
    assert list(drawn.val.items) == val
    assert drawn.test == split.test


def test_the_draw_leaves_the_global_generator_alone() -> None:
    split = Split(train=images(random.Random(7), 50, "train"))
    state = random.getstate()
    few_shot(split, shots=2, seed=1)
    assert random.getstate() == state


def test_validation_is_held_out_of_what_was_not_drawn() -> None:
    split = Split(train=images(random.Random(7), 120, "t"), test=images(random.Random(8), 20, "x"))
    drawn = few_shot(split, shots=16, seed=1)
    assert drawn.val is not None
    train, val = set(drawn.train.items), set(drawn.val.items)
    assert not train & val
    assert val <= set(split.train.items)
    assert max(Counter(item.label for item in val).values()) <= 4
    # The shots are those of a dataset with validation images of its own.
    assert drawn.train == few_shot(Split(train=split.train, val=split.test), shots=16, seed=1).train


def test_nothing_is_held_out_where_nothing_is_left() -> None:
    split = Split(train=images(random.Random(7), 30, "t"), test=images(random.Random(8), 20, "x"))
    assert few_shot(split, shots=30, seed=1).val is None


def test_zero_shots_take_all_and_hold_out_a_fifth() -> None:
    split = Split(train=images(random.Random(7), 100, "t"))
    drawn = few_shot(split, shots=0, seed=1)
    assert drawn.val is not None
    assert set(drawn.train.items) | set(drawn.val.items) == set(split.train.items)
    assert not set(drawn.train.items) & set(drawn.val.items)
    assert Counter(i.label for i in drawn.val.items) == dict.fromkeys(range(5), 4) | {
        label: len(items) // 5 for label, items in split.train.by_label().items() if len(items) < 20
    }


def test_classes_with_fewer_images_are_listed() -> None:
    items = [LabeledImage(Path(f"{n}"), 0 if n < 5 else 1) for n in range(8)]
    split = Split(train=ImageSet(class_names=("many", "few"), items=tuple(items)))
    assert shot_faults(split, 4) == [
        "class 'few' has 3 training images, fewer than 4 shots "
        "(take all it has with --fewer-shots-ok)"
    ]
