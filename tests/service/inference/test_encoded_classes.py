"""Class features from memory: equal to the bit to those of encoding everything, and bounded."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.service.inference.encoded_classes import EncodedClasses
from prompt_serve.service.inference.engine import Engine
from prompt_serve.types import FloatArray
from tests.backbones import TEXT_WIDTH
from tests.service.prompts import deep_text

NAMES = [f"{kind} {thing}" for kind in ("red", "tiny", "very old") for thing in
         ("house", "cat", "tree", "lamp", "boat", "sea anemone")]  # fmt: skip


class Counted:
    """The text encoder, and how many classes it was given."""

    def __init__(self, engine: Engine) -> None:
        self._encode = engine.encode_text
        self.classes = 0

    def __call__(self, sequences: Sequences) -> FloatArray:
        self.classes += len(sequences.eot)
        return self._encode(sequences)


@pytest.fixture
def counted(engine: Engine) -> Counted:
    return Counted(engine)


def prompt(bundle: Bundle, names: list[str], template: str = "a photo of a {}.") -> Prompt:
    return Prompt(
        name="task",
        method="zero-shot",
        class_names=tuple(names),
        templates=(template,),
        backbone=bundle.manifest.backbone,
        probe=np.zeros(len(names), dtype=np.float16),
    )


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_any_of_few_classes_may_be_known_before(
    n_classes: int, bundle: Bundle, engine: Engine
) -> None:
    names = NAMES[:n_classes]
    expected = class_features(prompt(bundle, names), bundle.text_side, engine.encode_text)
    for known in product([False, True], repeat=n_classes):
        remembering = EncodedClasses(engine.encode_text)
        before = [name for name, is_known in zip(names, known, strict=True) if is_known]
        class_features(prompt(bundle, [*before, *NAMES[10:13]]), bundle.text_side, remembering)
        found = class_features(prompt(bundle, names), bundle.text_side, remembering)
        assert np.array_equal(found, expected), known


@pytest.mark.parametrize(
    ("before", "now", "encoded"),
    [
        (NAMES, NAMES, 0),
        (NAMES, NAMES[::-1], 0),
        (NAMES, NAMES[3:9], 0),
        (NAMES[:9], NAMES, 9),
        (NAMES[4:], NAMES, 4),
        (NAMES[:-1], NAMES, 2),  # never one class alone
        (NAMES[1:], NAMES, 2),
        (NAMES[:6], NAMES[6:], 12),
        (NAMES[:1], NAMES, 18),  # a single class is not remembered
        (NAMES, NAMES[:1], 1),
    ],
)
def test_known_classes_are_not_encoded_and_no_bit_differs(
    before: list[str],
    now: list[str],
    encoded: int,
    bundle: Bundle,
    engine: Engine,
    counted: Counted,
) -> None:
    remembering = EncodedClasses(counted)
    class_features(prompt(bundle, before), bundle.text_side, remembering)
    counted.classes = 0

    found = class_features(prompt(bundle, now), bundle.text_side, remembering)

    expected = class_features(prompt(bundle, now), bundle.text_side, engine.encode_text)
    assert found.tobytes() == expected.tobytes()
    assert counted.classes == encoded


@pytest.mark.parametrize(
    "template", ["a photo of a {}.", "a drawing of a {}.", "{}", "{} now", "a {}"]
)
def test_another_template_is_encoded(template: str, bundle: Bundle, counted: Counted) -> None:
    remembering = EncodedClasses(counted)
    class_features(prompt(bundle, NAMES, "one {}"), bundle.text_side, remembering)
    counted.classes = 0

    for _ in range(2):
        class_features(prompt(bundle, NAMES, template), bundle.text_side, remembering)

    assert counted.classes == len(NAMES)


@pytest.mark.parametrize("kind", sorted(deep_text(TEXT_WIDTH)))
def test_vectors_of_deeper_blocks_are_told_apart(
    kind: str, bundle: Bundle, engine: Engine, counted: Counted
) -> None:
    remembering = EncodedClasses(counted)
    for text in (*deep_text(TEXT_WIDTH).values(), deep_text(TEXT_WIDTH)[kind]):
        counted.classes = 0
        own = replace(prompt(bundle, NAMES), text=text)
        found = class_features(own, bundle.text_side, remembering)
        expected = class_features(own, bundle.text_side, engine.encode_text)
        assert found.tobytes() == expected.tobytes()
    assert counted.classes == 0  # the last one was encoded before


def test_no_more_is_kept_than_the_budget_allows(bundle: Bundle, counted: Counted) -> None:
    width = bundle.manifest.backbone.embed_dim
    remembering = EncodedClasses(counted, max_bytes=6 * (4 * width + 300))
    class_features(prompt(bundle, NAMES), bundle.text_side, remembering)

    for names, encoded in ((NAMES[12:], 0), (NAMES[6:12], 6), (NAMES[12:], 6), (NAMES[12:], 0)):
        counted.classes = 0
        class_features(prompt(bundle, names), bundle.text_side, remembering)
        assert counted.classes == encoded
