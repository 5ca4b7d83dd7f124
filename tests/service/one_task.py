"""Answers of one task for one image, computed in PyTorch: what a mixed batch has to match."""

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.export.prompted_parity import features_with
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.class_features import folded_image
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.schemas import TaskPrediction
from prompt_serve.scoring import class_logits
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray

# float32 rounding, times a logit scale of at most 100.
LOGIT_ROUNDING = 1e-4


def logits_of(prompt: Prompt, image: bytes, bundle: Bundle, backbone: Backbone) -> FloatArray:
    """Return the logits (C,) of an image file."""
    features = embedding_of(prompt, image, bundle, backbone)
    logits = class_logits(features, class_features_of(prompt, backbone), backbone.logit_scale)
    return np.asarray(logits[0])


def embedding_of(prompt: Prompt, image: bytes, bundle: Bundle, backbone: Backbone) -> FloatArray:
    """Return the features (1, E) of an image file."""
    pixels = pixels_from_bytes(image, bundle.manifest.preprocessing)
    return features_with(
        backbone, pixels[np.newaxis].copy(), folded_image(prompt, bundle.text_side)
    )


def check(found: TaskPrediction, logits: FloatArray) -> None:
    """Compare the logits of all classes."""
    assert len(found.classes) == len(logits)
    for score in found.classes:
        assert score.logit == pytest.approx(float(logits[score.label]), abs=LOGIT_ROUNDING)
