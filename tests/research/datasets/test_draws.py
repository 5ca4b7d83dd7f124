"""The few-shot draw on the papers' datasets, against lists that others made with CoOp's code.

The lists are those of github.com/linzhiqiu/cross_modal_adaptation (MIT), folder ``indices``:
positions in the lists of the published split files. Where the split groups images by class, and
the sizes of the classes are known, the images themselves are not needed.
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from prompt_serve.research.datasets.spec import paper_datasets
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split
from prompt_serve.training.data.few_shot import few_shot

# EuroSAT has 2,000 to 3,000 images a class; half of each are to train, a fifth to validate.
EUROSAT = (3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000)
EUROSAT_TRAIN = [size // 2 for size in EUROSAT]
EUROSAT_VAL = [size // 5 for size in EUROSAT]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


EUROSAT_2_SHOTS_SEED_1 = [
    numbers(
        "275 1165 1629 2022 3241 4014 5420 5467 6527 6179 "
        "7096 7499 8058 8798 10136 10494 10754 11662 12545 13477"
    ),
    numbers(
        "234 104 925 631 1222 1226 2132 2077 2304 2780 "
        "2995 3151 3310 3696 4132 3729 4570 4413 5248 5307"
    ),
]
DTD_1_SHOT_SEED_1 = numbers(
    "8 96 174 231 288 304 376 427 511 588 628 690 761 804 890 913 966 1051 1081 1197 1253 1284 "
    "1347 1418 1488 1549 1560 1664 1708 1757 1846 1911 1934 2017 2046 2157 2180 2221 2281 2341 "
    "2441 2494 2520 2636 2664 2743 2773"
)
# The first of 101, and the last of 397.
FOOD101_1_SHOT_SEED_1 = numbers("68 791 1433 1910 2391")
SUN397_1_SHOT_SEED_1 = numbers("15642 15700 15731 15780 15837 15859")


@cache
def grouped(sizes: tuple[int, ...], prefix: str) -> ImageSet:
    """Images of one class after the other; each is called by its position in the list."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return ImageSet(
        class_names=tuple(f"class {label}" for label in range(len(sizes))),
        items=tuple(LabeledImage(Path(f"{prefix}{at}"), label) for at, label in enumerate(labels)),
    )


def positions(images: ImageSet | None) -> list[int]:
    assert images is not None
    return [int(item.path.name[1:]) for item in images.items]


def drawn(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> list[list[int]]:
    split = Split(train=grouped(tuple(train), "t"), val=grouped(tuple(val), "v"))
    chosen = few_shot(split, shots=shots, seed=seed)
    return [positions(chosen.train), positions(chosen.val)]


def test_eurosat_and_dtd_are_drawn_as_others_drew_them() -> None:
    assert drawn(EUROSAT_TRAIN, EUROSAT_VAL, 2, 1) == EUROSAT_2_SHOTS_SEED_1
    assert drawn([60] * 47, [24] * 47, 1, 1)[0] == DTD_1_SHOT_SEED_1


def test_food101_and_sun397_are_drawn_as_others_drew_them() -> None:
    food, _ = drawn([500] * 5, [1], 1, 1)  # later classes do not change what is drawn of these
    assert food == FOOD101_1_SHOT_SEED_1
    sun, _ = drawn([40] * 397, [1], 1, 1)
    assert sun[-6:] == SUN397_1_SHOT_SEED_1


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_eurosats_lists_are_one_stream_over_ranges(shots: int, seed: int) -> None:
    rng = random.Random(seed)
    expected = [
        [
            at
            for start, end in pairwise(accumulate(sizes, initial=0))
            for at in rng.sample(range(start, end), k)
        ]
        for sizes, k in ((EUROSAT_TRAIN, shots), (EUROSAT_VAL, min(shots, 4)))
    ]
    assert drawn(EUROSAT_TRAIN, EUROSAT_VAL, shots, seed) == expected


def test_classes_are_drawn_in_the_order_in_which_they_appear() -> None:
    """The lists of Flowers102 and StanfordCars do not begin with label 0."""
    sizes, order = (30, 50, 40), (2, 0, 1)
    at = 0
    items = []
    ranges = []
    for label in order:
        ranges.append(range(at, at + sizes[label]))
        items += [LabeledImage(Path(f"t{n}"), label) for n in ranges[-1]]
        at += sizes[label]
    train = ImageSet(class_names=("a", "b", "c"), items=tuple(items))
    rng = random.Random(1)
    expected = [n for numbers in ranges for n in rng.sample(numbers, 4)]
    sorted_rng = random.Random(1)
    by_label = [n for label in (1, 2, 0) for n in sorted_rng.sample(ranges[label], 4)]
    chosen = few_shot(Split(train=train, val=train), shots=4, seed=1)
    assert positions(chosen.train) == expected
    assert sorted(expected) != sorted(by_label)


def test_the_sizes_here_are_the_published_ones() -> None:
    sizes = paper_datasets()
    assert (sum(EUROSAT_TRAIN), sum(EUROSAT_VAL)) == (13_500, 5_400)
    for name, train, val in (
        ("eurosat", sum(EUROSAT_TRAIN), sum(EUROSAT_VAL)),
        ("dtd", 60 * 47, 24 * 47),
        ("food101", 500 * 101, 200 * 101),
        ("sun397", 40 * 397, 10 * 397),
    ):
        assert (sizes[name].sizes["train"], sizes[name].sizes["val"]) == (train, val)


def test_what_is_looked_at_to_know_a_split_was_drawn_by_others() -> None:
    """Positions and files of the published splits are known from these lists."""
    published = paper_datasets()
    assert list(published["eurosat"].published) == EUROSAT_2_SHOTS_SEED_1[0][:3]
    assert list(published["food101"].published) == FOOD101_1_SHOT_SEED_1[:3]
