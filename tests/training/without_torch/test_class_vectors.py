"""Class vectors from ONNX Runtime's features agree with those from PyTorch's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.closed_form.learn import learn_classes
from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import ConfigInvalid, DatasetInvalid
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.probe import probe_difference
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache, feature_key, image_features
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import evaluate_prompt, probed_features
from prompt_serve.training.without_torch.class_vectors import ClassVectorRun, train_class_vectors
from tests.drawings import draw_dataset

# Features have unit length: float16 rounds their largest numbers by up to 2^-12. ONNX Runtime and
# PyTorch differ by 1e-6, which moves a number on the border between two float16 numbers by 2^-11.
FLOAT16 = 2.0**-11


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    bundle = open_bundle(shipped_bundle("embedded-vit"), verify=False)
    return Encoders.open(bundle, cuda_device=None, threads=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return read_dataset(draw_dataset(tmp_path_factory.mktemp("drawn"), train=8, test=4))


def test_features_and_class_vectors_agree_with_pytorch(encoders: Encoders, photos: Split) -> None:
    backbone = load_backbone("embedded-vit")
    assert photos.test is not None

    result = train_class_vectors(encoders, photos, ClassVectorRun(bits=(16,)))

    here, there = (image_features(photos.train, e) for e in (encoders, backbone))
    np.testing.assert_array_equal(here.labels, there.labels)
    np.testing.assert_allclose(here.plain, there.plain, atol=FLOAT16)
    prompt = from_bytes(to_bytes(result.prompt))
    template = _template_of(prompt)
    learned = learn_classes(
        there.plain,
        there.labels,
        len(photos.class_names),
        logit_scale=backbone.logit_scale,
        bits=16,
        seed=1,
        text_features=class_features(template, backbone.text_side, backbone.encode_text),
    )
    assert prompt.classes is not None
    rows, expected = prompt.classes.class_features()[0], learned.classes.class_features()[0]
    # Directions: rounding of the features is amplified by the inverse of the shrunk covariance.
    np.testing.assert_allclose((rows * expected).sum(axis=1), 1, atol=1e-4)
    assert prompt.temperature == pytest.approx(learned.temperature, rel=1e-2)
    assert prompt.unlike_below == pytest.approx(learned.unlike_below, abs=FLOAT16)
    assert prompt.training["shrinkage"] == learned.shrinkage
    assert prompt.backbone == backbone.ref
    assert probe_difference(prompt.probe, probed_features(prompt, backbone)) <= 1e-3
    test = evaluate_prompt(prompt, backbone, image_features(photos.test, backbone))
    assert prompt.metrics["test"]["accuracy"] == pytest.approx(test.accuracy, abs=1 / test.images)
    zero_shot = evaluate_prompt(template, backbone, image_features(photos.test, backbone))
    assert prompt.metrics["test"]["zero_shot_accuracy"] == pytest.approx(
        zero_shot.accuracy, abs=1 / test.images
    )


def test_colors_are_learned_from_all_images_and_the_same_seed_gives_the_same_bytes(
    encoders: Encoders, photos: Split, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)

    first, second = (
        train_class_vectors(encoders, photos, ClassVectorRun(), name="colors", cache=cache)
        for _ in range(2)
    )

    assert to_bytes(first.prompt) == to_bytes(second.prompt)
    assert first.images == {"train": 32, "test": 16}
    assert first.comparisons["test"].prompt.accuracy >= 0.9
    assert list(first.comparisons) == ["cross-validation", "test"]
    assert first.prompt.metrics["images"] == {"train": 32, "test": 16}
    assert first.prompt.unlike_below > 0


def test_shots_draw_images_per_class(encoders: Encoders, photos: Split) -> None:
    result = train_class_vectors(encoders, photos, ClassVectorRun(shots=3))

    assert result.images == {"train": 12, "test": 16}


def test_validation_images_are_learned_from(encoders: Encoders, photos: Split) -> None:
    some = photos.train.with_items(photos.train.items[::2])
    others = photos.train.with_items(photos.train.items[1::2])

    result = train_class_vectors(
        encoders, replace(photos, train=some, val=others), ClassVectorRun(text_prior=False)
    )

    assert result.images == {"train": 32, "test": 16}


def test_the_first_width_that_fits_is_taken(encoders: Encoders, photos: Split) -> None:
    wide = train_class_vectors(encoders, photos, ClassVectorRun(bits=(4, 2, 1))).prompt
    narrow = train_class_vectors(
        encoders, photos, ClassVectorRun(bits=(4, 2, 1), max_bytes=wide.payload_bytes - 1)
    ).prompt

    assert (wide.training["bits"], narrow.training["bits"]) == (4, 2)
    assert narrow.payload_bytes < wide.payload_bytes
    with pytest.raises(ConfigInvalid, match=r"the limit is 100. Raise it with --max-bytes"):
        train_class_vectors(encoders, photos, ClassVectorRun(bits=(4, 1), max_bytes=100))


def test_single_images_give_class_means_and_a_note(encoders: Encoders, tmp_path: Path) -> None:
    one = read_dataset(draw_dataset(tmp_path, train=1, test=2))

    result = train_class_vectors(encoders, one, ClassVectorRun())

    assert list(result.comparisons) == ["test"]
    assert result.notes[0].startswith("Every class has a single image")


def test_features_of_pytorch_and_of_onnx_runtime_are_cached_apart(encoders: Encoders) -> None:
    backbone = load_backbone("embedded-vit")

    keys = {feature_key(encoder, ["digest"], views=0, seed=0) for encoder in (encoders, backbone)}

    assert len(keys) == 2


def test_one_class_is_refused(encoders: Encoders, tmp_path: Path) -> None:
    one = draw_dataset(tmp_path, train=2, test=1)
    for folder in [path for part in one.iterdir() for path in sorted(part.iterdir())[1:]]:
        for image in folder.iterdir():
            image.unlink()
        folder.rmdir()

    with pytest.raises((ConfigInvalid, DatasetInvalid), match="one class"):
        train_class_vectors(encoders, read_dataset(one), ClassVectorRun())


def _template_of(prompt: Prompt) -> Prompt:
    return replace(prompt, method="zero-shot", classes=None, sketch=None, unlike_below=-1.0)
