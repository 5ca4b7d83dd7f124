"""Class features through ONNX: those of PyTorch, whatever the chunks, and never wrong ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch, ProbeMismatch
from prompt_serve.prompt_file import Prompt
from prompt_serve.service import class_features as module
from prompt_serve.service.class_features import class_features, verified_class_features
from prompt_serve.service.engine import Engine
from prompt_serve.training.backbone import Backbone, load_backbone
from prompt_serve.training.evaluate import class_features_of
from tests.backbones import write_tiny_backbone
from tests.service.prompts import learned_prompt, probed

NAMES = ("cat", "golden retriever", "very_long_name of some rare tropical frog", "dog", "x")
# float32 sums of a few hundred terms in another order.
ROUNDING = 2e-6


@pytest.mark.parametrize("dense", [False, True], ids=["low rank", "class-specific"])
def test_they_are_those_of_pytorch(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine, dense: bool
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES, dense=dense)

    here = verified_class_features(prompt, bundle, engine.encode_text)

    difference = float(np.abs(here - class_features_of(prompt, tiny_backbone)).max())
    print(f"largest difference from PyTorch: {difference:.2e}")
    assert difference <= ROUNDING


def test_an_ensemble_of_templates_is_the_unit_mean(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    one, two = (_zero_shot(tiny_backbone, t) for t in ("a photo of a {}.", "{} in a drawing"))
    both = replace(one, templates=one.templates + two.templates)

    first, second, mean = (class_features(p, bundle, engine.encode_text) for p in (one, two, both))

    expected = first + second
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(mean - expected).max() <= ROUNDING
    assert np.abs(mean - class_features_of(both, tiny_backbone)).max() <= ROUNDING


@pytest.mark.parametrize("dense", [False, True], ids=["low rank", "class-specific"])
def test_chunks_change_nothing(
    tiny_backbone: Backbone,
    bundle: Bundle,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    dense: bool,
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES, dense=dense)
    whole = class_features(prompt, bundle, engine.encode_text)

    monkeypatch.setattr(module, "CHUNK_CLASSES", 2)

    assert np.abs(class_features(prompt, bundle, engine.encode_text) - whole).max() <= ROUNDING


def test_a_prompt_of_another_backbone_is_refused_with_both_names(
    bundle: Bundle, engine: Engine, tmp_path: Path
) -> None:
    other = load_backbone(str(write_tiny_backbone(tmp_path / "other", seed=7)))

    with pytest.raises(BackboneMismatch, match=r"learned on 'other'.*runs 'tiny'.*--backbone tiny"):
        verified_class_features(learned_prompt(other, NAMES), bundle, engine.encode_text)


def test_numbers_that_were_changed_after_learning_are_refused(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    honest = learned_prompt(tiny_backbone, NAMES)
    swapped = replace(honest, class_names=("dog", *NAMES[1:3], "cat", "x"))

    with pytest.raises(ProbeMismatch, match="differ by"):
        verified_class_features(swapped, bundle, engine.encode_text)


def test_features_that_are_not_numbers_are_refused(
    tiny_backbone: Backbone, bundle: Bundle, engine: Engine
) -> None:
    prompt = learned_prompt(tiny_backbone, NAMES)
    nothing = np.full((len(NAMES), bundle.manifest.backbone.embed_dim), np.nan, dtype=np.float32)

    with pytest.raises(ProbeMismatch, match="nan"):
        verified_class_features(prompt, bundle, lambda sequences: nothing[: len(sequences.eot)])


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
