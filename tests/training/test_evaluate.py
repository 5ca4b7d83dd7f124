"""Class features come from the file alone; a prompt of nothing equals zero-shot exactly."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from prompt_serve.errors import BackboneMismatch
from prompt_serve.prompts import class_features as class_features_module
from prompt_serve.prompts.encodings import Dense, LowRank, TextEncoding
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.without_torch.evaluation import check_backbone, evaluate
from prompt_serve.types import FloatArray
from tests.golden import to_float16

NAMES = ("cat", "guinea_pig", "a rather long name of an animal")


def prompt(
    backbone: Backbone,
    text: TextEncoding | None = None,
    templates: tuple[str, ...] = ("a photo of {}.",),
) -> Prompt:
    return Prompt(
        name="animals",
        method="test",
        class_names=NAMES,
        templates=templates,
        backbone=backbone.ref,
        probe=to_float16(np.zeros(len(NAMES))),
        text=text,
    )


def open_clip_features(backbone: Backbone, template: str) -> FloatArray:
    tokenizer = open_clip.SimpleTokenizer(context_length=backbone.ref.context_length)
    texts = tokenizer([template.format(name.replace("_", " ")) for name in NAMES])
    with torch.inference_mode():
        features: FloatArray = backbone.clip.encode_text(texts, normalize=True).numpy()
    return features


def test_zero_shot_features_are_open_clips(tiny_backbone: Backbone) -> None:
    ours = class_features_of(prompt(tiny_backbone), tiny_backbone)
    # Two layers of float32 in another order of summation.
    assert np.abs(ours - open_clip_features(tiny_backbone, "a photo of {}.")).max() < 1e-5


def test_an_ensemble_is_the_unit_mean_of_its_templates(tiny_backbone: Backbone) -> None:
    templates = ("a photo of {}.", "{} texture", "the {}")
    ours = class_features_of(prompt(tiny_backbone, templates=templates), tiny_backbone)
    each = [open_clip_features(tiny_backbone, template) for template in templates]
    assert np.abs(ours - unit(np.mean(each, axis=0))).max() < 1e-5


def test_factors_that_make_nothing_equal_zero_shot_exactly(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    p_b = to_float16(rng.normal(size=(1, tiny_backbone.ref.text_width)))
    nothing = LowRank(p_a=to_float16(np.zeros((3, 1))), p_b=p_b)
    plain = class_features_of(prompt(tiny_backbone), tiny_backbone)
    assert class_features_of(prompt(tiny_backbone, nothing), tiny_backbone).tobytes() == (
        plain.tobytes()
    )


def test_a_class_specific_context_of_equal_parts_equals_a_shared_one(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    context = to_float16(rng.normal(size=(3, tiny_backbone.ref.text_width)))
    shared = class_features_of(prompt(tiny_backbone, Dense(context=context)), tiny_backbone)
    each = Dense(context=np.repeat(context[np.newaxis], len(NAMES), axis=0))
    own = class_features_of(prompt(tiny_backbone, each), tiny_backbone)
    assert np.abs(shared - own).max() < 1e-5


def test_features_are_the_same_before_and_after_the_file(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    width = tiny_backbone.ref.text_width
    text = LowRank(
        p_a=to_float16(rng.normal(size=(3, 2))), p_b=to_float16(rng.normal(size=(2, width)))
    )
    made = prompt(tiny_backbone, text)
    stored = from_bytes(to_bytes(made))
    assert class_features_of(made, tiny_backbone).tobytes() == (
        class_features_of(stored, tiny_backbone).tobytes()
    )


def test_many_classes_are_encoded_in_parts(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = class_features_of(prompt(tiny_backbone), tiny_backbone)
    monkeypatch.setattr(class_features_module, "CHUNK_CLASSES", 2)
    assert np.abs(class_features_of(prompt(tiny_backbone), tiny_backbone) - whole).max() < 1e-6


def test_another_backbone_is_refused(tiny_backbone: Backbone) -> None:
    other = tiny_backbone.ref.model_copy(update={"id": "other", "fingerprint": "0" * 64})
    with pytest.raises(BackboneMismatch, match="was learned on 'other'"):
        class_features_of(replace(prompt(tiny_backbone), backbone=other), tiny_backbone)


LOGITS = np.array([[3, 1, 0], [1, 3, 0], [0, 3, 1], [2, 1, 0]], dtype=np.float32)
LABELS = np.array([0, 1, 1, 1])


def test_accuracy_is_counted_as_by_hand() -> None:
    found = evaluate(LOGITS, LABELS)
    assert found.images == 4
    assert found.accuracy == 0.75
    assert found.per_class == (1.0, 2 / 3, None)
    assert found.unknown == 0.0
    shown = found.to_dict()
    assert shown.pop("calibration_error") == round(found.calibration_error, 4)
    assert shown == {"images": 4, "accuracy": 0.75, "per_class": [1.0, 0.6667, None]}


def test_temperature_and_threshold_of_the_prompt_count(tiny_backbone: Backbone) -> None:
    """Probabilities at T = 2 by hand: the last image is the least sure, and it is wrong."""
    confidence = np.exp(LOGITS / 2).max(axis=1) / np.exp(LOGITS / 2).sum(axis=1)
    order = np.sort(confidence)
    between = float((order[0] + order[1]) / 2)
    made = replace(prompt(tiny_backbone), temperature=2.0, unknown_below=between)
    found = evaluate(LOGITS, LABELS, made)
    assert found.accuracy == 0.75  # of all images, as ever
    assert found.unknown == 0.25
    assert found.known_accuracy == 1.0
    assert found.to_dict()["known_accuracy"] == 1.0
    sharp, soft = evaluate(LOGITS, LABELS), evaluate(LOGITS, LABELS, made)
    assert sharp.calibration_error != soft.calibration_error


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("ViT-B-32/openai", True),
        ("ViT-B-32@b32.pt", False),
        ("ViT-B-32-quickgelu@b32.pt", False),
        ("ViT-B-32/laion400m_e31", False),
        ("tiny", False),
    ],
)
def test_a_former_fingerprint_counts_under_the_same_name(
    name: str, usable: bool, tiny_backbone: Backbone
) -> None:
    backbone = replace(tiny_backbone, id="ViT-B-32/openai")
    assert backbone.former_fingerprint == backbone.weights_fingerprint != backbone.ref.fingerprint
    update = {"id": name, "fingerprint": backbone.weights_fingerprint}
    learned = replace(prompt(backbone), backbone=backbone.ref.model_copy(update=update))
    if usable:
        check_backbone(learned, backbone.ref, backbone.former_fingerprint)
    else:
        with pytest.raises(BackboneMismatch, match="learned on"):
            check_backbone(learned, backbone.ref, backbone.former_fingerprint)
