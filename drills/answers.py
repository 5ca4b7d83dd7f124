"""Expected answers, computed beside the service, and which of them a request may get.

A prompt file's answers are computed with the encoders of the bundle and the softmax written out
here: the code of the service takes no part in them.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.encodings import LowRank
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, to_bytes, version_of
from prompt_serve.types import FloatArray

BUNDLE = "embedded"
TEMPLATE = "a photo of a {}."
N_CTX = 4  # tokens of "a photo of a"
# Image features of a batch differ in the last bits from those of one image; times the logit scale.
TOLERANCE = 2e-3
_SIZES = ((64, 48), (224, 224), (300, 180), (97, 131))


@dataclass(frozen=True)
class PromptFile:
    """Prompt file of a drill: its version, content, class names, and probabilities by image."""

    version: str
    data: bytes
    class_names: tuple[str, ...]
    probabilities: Mapping[int, FloatArray]  # (C,) by image


class Oracle:
    """Images, prompt files and the answer of each file for each image.

    Args:
        tasks: number of task names.
        versions: prompt files per name.
        images: number of images.
        classes: class names per prompt file.
        bundle: name of the shipped bundle that the service runs.
    """

    def __init__(
        self,
        *,
        tasks: int = 6,
        versions: int = 4,
        images: int = 12,
        classes: int = 12,
        bundle: str = BUNDLE,
    ) -> None:
        opened = open_bundle(shipped_bundle(bundle))
        self._encoders = Encoders.open(opened, cuda_device=None, threads=1)
        self._scale = opened.manifest.logit_scale
        self.images = [picture(n) for n in range(images)]
        pixels = [pixels_from_bytes(image, opened.manifest.preprocessing) for image in self.images]
        self._features = np.concatenate(
            [self._encoders.encode_pixels(one[np.newaxis]) for one in pixels]
        )
        self.files = {
            f"drill-{task}": [
                self._prompt_file(task * versions + n, f"drill-{task}", classes)
                for n in range(versions)
            ]
            for task in range(tasks)
        }
        self.by_version = {one.version: one for files in self.files.values() for one in files}

    def wrong(self, answer: Mapping[str, Any], image: int, allowed: Sequence[str]) -> str | None:
        """Say what is wrong with the prediction of one task for an image; None if nothing is."""
        version = answer["version"]
        if version not in allowed:
            return f"version {version[:8]}, but only {[one[:8] for one in allowed]} were current"
        file = self.by_version[version]
        expected = file.probabilities[image]
        best = float(expected.max())
        for score in answer["classes"]:
            label = score["label"]
            if score["class_name"] != file.class_names[label]:
                return f"class {score['class_name']!r} under label {label}"
            if not math.isclose(score["probability"], expected[label], abs_tol=TOLERANCE):
                return f"probability {score['probability']}, expected {expected[label]}"
        if expected[answer["classes"][0]["label"]] < best - TOLERANCE:
            return f"class {answer['classes'][0]['class_name']!r} first"
        return None

    def _prompt_file(self, seed: int, name: str, classes: int) -> PromptFile:
        rng = np.random.default_rng(seed)
        backbone = self._encoders.ref

        def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float16]]:
            return (0.5 * rng.standard_normal(shape)).astype(np.float16)

        prompt = Prompt(
            name=name,
            method="dip",
            class_names=tuple(f"thing {seed} {c}" for c in range(classes)),
            templates=(TEMPLATE,),
            backbone=backbone,
            probe=np.zeros(classes, dtype=np.float16),
            text=LowRank(p_a=numbers(N_CTX, 1), p_b=numbers(1, backbone.text_width)),
        )
        features = class_features(
            prompt, self._encoders.bundle.text_side, self._encoders.encode_text
        )
        data = to_bytes(replace(prompt, probe=probe(features)))
        logits = self._scale * self._features.astype(np.float64) @ features.T.astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        by_image = {n: row.astype(np.float32) for n, row in enumerate(probabilities)}
        return PromptFile(version_of(data), data, prompt.class_names, by_image)


@dataclass
class Write:
    """Change of a name: the version it sets, when it was sent, and when it was acknowledged."""

    version: str
    sent: float
    acknowledged: float = math.inf  # never: it may have been made or not


@dataclass
class History:
    """Changes of one name, by its only writer, in order."""

    writes: list[Write] = field(default_factory=list)

    def allowed(self, sent: float, received: float) -> list[str]:
        """Return the versions that an answer may have, of a request sent and answered then.

        A change counts from when it was sent, and surely from when it was acknowledged; what was
        acknowledged before the request was sent replaces all earlier ones.
        """
        sure = [n for n, write in enumerate(self.writes) if write.acknowledged <= sent]
        first = sure[-1] if sure else 0
        return [write.version for write in self.writes[first:] if write.sent <= received]

    @property
    def final(self) -> list[str]:
        """Versions that the name may have when nothing is in progress any more."""
        sure = [n for n, write in enumerate(self.writes) if write.acknowledged < math.inf]
        return [write.version for write in self.writes[sure[-1] if sure else 0 :]]


def picture(seed: int) -> bytes:
    """Draw a PNG of a few colors."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize(_SIZES[seed % len(_SIZES)], Image.Resampling.BICUBIC)
    image.save(file, "PNG")
    return file.getvalue()
