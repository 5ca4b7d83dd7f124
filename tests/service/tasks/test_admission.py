"""Class features through ONNX: those of PyTorch, whatever the chunks, and never wrong ones."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import (
    BackboneMismatch,
    ProbeMismatch,
    PromptFileInvalid,
    PromptUnsupported,
)
from prompt_serve.prompts import class_features as module
from prompt_serve.prompts.class_features import EncodeText, class_features
from prompt_serve.prompts.encodings import Deep, LowRank, TextEncoding
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.scoring import unit
from prompt_serve.service.inference.engine import Engine
from prompt_serve.tasks.admission import verified_class_features
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.backbones import EMBED_DIM, TEXT_WIDTH, write_tiny_backbone
from tests.service.prompts import (
    Numbers,
    conditional,
    deep_text,
    image_prompts,
    learned_prompt,
    probed,
    ragged,
    unprobed,
)

NAMES = ("cat", "golden retriever", "very_long_name of some rare tropical frog", "dog", "x")
# float32 sums of a few hundred terms in another order.
ROUNDING = 2e-6


def served_features(prompt: Prompt, bundle: Bundle, encode_text: EncodeText) -> FloatArray:
    return verified_class_features(
        prompt, bundle, lambda: class_features(prompt, bundle.text_side, encode_text)
    )


@pytest.mark.parametrize("dense", [False, True], ids=["low rank", "class-specific"])
def test_they_are_those_of_pytorch(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine, dense: bool
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES, dense=dense)

    here = served_features(prompt, bundle, engine.encode_text)

    difference = float(np.abs(here - class_features_of(prompt, tiny_backbone)).max())
    print(f"largest difference from PyTorch: {difference:.2e}")
    assert difference <= ROUNDING


def test_an_ensemble_of_templates_is_the_unit_mean(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    one, two = (_zero_shot(tiny_backbone, t) for t in ("a photo of a {}.", "{} in a drawing"))
    both = replace(one, templates=one.templates + two.templates)

    first, second, mean = (
        class_features(p, bundle.text_side, engine.encode_text) for p in (one, two, both)
    )

    expected = first + second
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(mean - expected).max() <= ROUNDING
    assert np.abs(mean - class_features_of(both, tiny_backbone)).max() <= ROUNDING


def _of_templates(
    backbone: Backbone, bundle: Bundle, n_classes: int, n_templates: int
) -> tuple[FloatArray, list[FloatArray], int]:
    """Class features of invented texts: all, those of each template, and the peak of the memory."""
    prompt = replace(
        _zero_shot(backbone, "a {}"),
        class_names=tuple(f"class {index}" for index in range(n_classes)),
        templates=tuple(f"a{'b' * n} {{}}" for n in range(n_templates)),
        probe=np.zeros(n_classes, np.float16),
    )
    rng = np.random.default_rng(0)
    given = [
        rng.standard_normal((n_classes, EMBED_DIM), dtype=np.float32) for _ in range(n_templates)
    ]
    step = module.CHUNK_CLASSES
    chunks = iter([each[n : n + step] for each in given for n in range(0, n_classes, step)])
    tracemalloc.start()
    try:
        found = class_features(prompt, bundle.text_side, lambda _: next(chunks))
        return found, given, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n_templates", [2, 3, 9])
def test_the_mean_of_templates_is_that_of_numpy(
    tiny_backbone: Backbone, bundle: Bundle, n_templates: int
) -> None:
    found, given, _ = _of_templates(tiny_backbone, bundle, 250, n_templates)

    assert np.array_equal(found, unit(np.mean(given, axis=0, dtype=np.float32)))


def test_many_templates_take_no_more_memory_than_few(
    tiny_backbone: Backbone, bundle: Bundle
) -> None:
    n_classes = 250
    few, many = (_of_templates(tiny_backbone, bundle, n_classes, n)[2] for n in (2, 16))

    assert many - few < 5 * n_classes * EMBED_DIM * 4  # bytes of float32


@pytest.mark.parametrize("dense", [False, True], ids=["low rank", "class-specific"])
def test_chunks_change_nothing(
    tiny_backbone: Backbone,
    bundle: Bundle,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    dense: bool,
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES, dense=dense)
    whole = class_features(prompt, bundle.text_side, engine.encode_text)

    monkeypatch.setattr(module, "CHUNK_CLASSES", 2)

    in_chunks = class_features(prompt, bundle.text_side, engine.encode_text)
    assert np.abs(in_chunks - whole).max() <= ROUNDING


@pytest.mark.parametrize("kind", deep_text(TEXT_WIDTH))
def test_vectors_of_deeper_blocks_are_served_as_they_were_learned(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine, kind: str
) -> None:
    text = deep_text(TEXT_WIDTH)[kind]
    prompt = from_bytes(to_bytes(probed(unprobed(tiny_backbone, NAMES, text), tiny_backbone)))

    here = served_features(prompt, bundle, engine.encode_text)

    assert np.abs(here - class_features_of(prompt, tiny_backbone)).max() <= ROUNDING
    shallow = class_features_of(replace(prompt, text=_shallow(text)), tiny_backbone)
    deepens = kind != "ADAPT, all pruned"
    assert (np.abs(here - shallow).max() > 1e-3) == deepens  # what is deep counts


def _shallow(text: TextEncoding) -> TextEncoding | None:
    return text.layers[0] if isinstance(text, Deep) else None


def test_prompts_that_depend_on_the_image_say_so_and_what_to_do(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    text = conditional(TEXT_WIDTH, EMBED_DIM)
    prompt = probed(unprobed(tiny_backbone, NAMES, text, method="m"), tiny_backbone)

    with pytest.raises(PromptUnsupported, match=r"\(method 'm'\) has .*[Tt]rain .*'dip'"):
        served_features(prompt, bundle, engine.encode_text)


@pytest.mark.parametrize("kind", image_prompts(TEXT_WIDTH, 64))
def test_a_tower_that_takes_no_vectors_says_which_do(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine, kind: str
) -> None:
    text, image = image_prompts(TEXT_WIDTH, 64)[kind]
    prompt = probed(unprobed(tiny_backbone, NAMES, text, image, method="m"), tiny_backbone)
    manifest = bundle.manifest.model_copy(update={"image_tower": None})
    convolutional = Bundle(bundle.path, manifest)

    with pytest.raises(PromptUnsupported, match=r"'m'.*'embedded-vit' or ViT-B-16.*'dip'"):
        served_features(prompt, convolutional, engine.encode_text)


def test_vectors_for_another_number_of_blocks_are_refused(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    numbers = Numbers()
    layer = LowRank(p_a=numbers(2, 1), p_b=numbers(1, TEXT_WIDTH), base="none")
    too_deep = unprobed(tiny_backbone, NAMES, Deep(layers=(layer,) * 3))
    too_many = unprobed(tiny_backbone, NAMES, ragged(numbers, TEXT_WIDTH, 1, 1, 1))

    with pytest.raises(PromptFileInvalid, match="for 3 blocks; the text tower has 2"):
        served_features(too_deep, bundle, engine.encode_text)
    with pytest.raises(PromptFileInvalid, match="values for 3 blocks; the text tower has 2"):
        served_features(too_many, bundle, engine.encode_text)


def test_a_prompt_of_another_backbone_is_refused_with_both_names(
    bundle: Bundle, engine: Engine, tmp_path: Path
) -> None:
    other = load_backbone(str(write_tiny_backbone(tmp_path / "other", seed=7)))

    with pytest.raises(
        BackboneMismatch, match=r"learned on 'other'.*runs here is 'tiny'.*--backbone tiny"
    ):
        served_features(learned_prompt(other, NAMES), bundle, engine.encode_text)


def test_numbers_that_were_changed_after_learning_are_refused(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    honest = learned_prompt(tiny_backbone, NAMES)
    swapped = replace(honest, class_names=("dog", *NAMES[1:3], "cat", "x"))

    with pytest.raises(ProbeMismatch, match="differ by"):
        served_features(swapped, bundle, engine.encode_text)


def test_features_that_are_not_numbers_are_refused(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES)
    nothing = np.full((len(NAMES), bundle.manifest.backbone.embed_dim), np.nan, dtype=np.float32)

    with pytest.raises(ProbeMismatch, match="nan"):
        served_features(prompt, bundle, lambda sequences: nothing[: len(sequences.eot)])


def _zero_shot(backbone: Backbone, template: str) -> Prompt:
    return probed(
        Prompt(
            name="zero",
            method="zero-shot",
            class_names=NAMES,
            templates=(template,),
            backbone=backbone.ref,
            probe=np.zeros(len(NAMES), dtype=np.float16),
        ),
        backbone,
    )
