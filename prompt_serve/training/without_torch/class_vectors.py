"""Learn class vectors from the features of a bundle: ONNX Runtime and numpy, no torch.

It takes the same steps as training with torch, and features that differ in the sixth digit only:
the same images, text features as a prior, closed form, and measurements from the file's content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prompt_serve import __version__
from prompt_serve.closed_form.learn import LearnedClasses, learn_classes
from prompt_serve.errors import ConfigInvalid
from prompt_serve.onnx_encoders import OnnxEncoders
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.scoring import class_logits
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet, image_features
from prompt_serve.training.data.few_shot import few_shot, shot_faults
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.training.without_torch.evaluation import (
    ZeroShotComparison,
    evaluate,
    metrics_of,
    unknown_threshold,
)
from prompt_serve.training.without_torch.outcome import TrainingResult
from prompt_serve.types import FloatArray

METHOD = "class-vectors"
ALL_IMAGES = 0


@dataclass(frozen=True, kw_only=True)
class ClassVectorRun:
    """What class vectors are learned with; saved in the prompt file under ``training``."""

    bits: Sequence[int] = (4,)  # per number; the first that fits into ``max_bytes`` is taken
    max_bytes: int | None = None  # limit of the tensors in the file; None: no limit
    text_prior: bool = True  # the class names count as far as cross-validation says
    shots: int = ALL_IMAGES  # training images per class
    seed: int = 1  # of the drawn images and the folds
    template: str = DEFAULT_TEMPLATE
    unknown_share: float = 0.0  # share of held-out images that may be answered with "unknown"

    def to_dict(self, learned: LearnedClasses, bits: int) -> dict[str, Any]:
        """Return the settings and what cross-validation chose, as the prompt file stores them."""
        return {
            "method": METHOD,
            "shots": self.shots,
            "seed": self.seed,
            "template": self.template,
            "unknown_share": self.unknown_share,
            "bits": bits,
            "text_prior": self.text_prior,
            "shrinkage": learned.shrinkage,
            "text_weight": round(learned.text_factor, 4),
        }


def train_class_vectors(
    encoders: OnnxEncoders,
    dataset: Split,
    run: ClassVectorRun,
    *,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Learn class vectors for ``dataset``; test images are evaluated once, at the end.

    Args:
        encoders: of a bundle.
        dataset: all images; validation images are learned from as well, unless shots are drawn.
        run: settings.
        name: of the task, kept in its file.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.

    Raises:
        ConfigInvalid: there is one class only, or no width fits into ``run.max_bytes``.
        PromptTooLong: a class name does not fit into the text encoder.
    """
    return _Training(encoders, dataset, run, name, cache, workers, progress).result()


class _Training:
    """One run: its images, their features, and the seconds of each stage."""

    def __init__(
        self,
        encoders: OnnxEncoders,
        dataset: Split,
        run: ClassVectorRun,
        name: str,
        cache: FeatureCache | None,
        workers: int,
        progress: Progress,
    ) -> None:
        self._encoders, self._run, self._name = encoders, run, name
        self._cache, self._workers, self._progress = cache, workers, progress
        self._images = _drawn(dataset, run)
        self._timer = StageTimer()
        with self._timer("features"):
            self._zero_shot = self._class_features(self._template_prompt())
        self._train = self._features("train", self._images.train)

    def result(self) -> TrainingResult:
        """Learn, store, and measure what was stored."""
        images = self._images
        with self._timer("learning"):
            learned, draft = self._within_budget()
        test = None if images.test is None else self._features("test", images.test)
        with self._timer("evaluation"):
            stored = from_bytes(to_bytes(draft))
            comparisons = self._comparisons(learned, stored, test)
            counts = {part: len(found) for part, found in images.parts.items()}
            finished = replace(
                stored,
                probe=probe(self._class_features(stored)),
                metrics=metrics_of(comparisons, counts),
            )
        return TrainingResult(
            prompt=finished,
            comparisons=comparisons,
            history=(),
            images=counts,
            notes=_image_notes(images, self._run.shots),
            seconds=self._timer.seconds,
        )

    def _within_budget(self) -> tuple[LearnedClasses, Prompt]:
        """Learn with the first number of bits whose tensors fit."""
        run, train = self._run, self._train
        for bits in run.bits:
            learned = learn_classes(
                train.plain,
                train.labels,
                len(self._zero_shot),
                logit_scale=self._logit_scale,
                bits=bits,
                seed=run.seed,
                text_features=self._zero_shot if run.text_prior else None,
            )
            draft = self._draft(learned, bits)
            if run.max_bytes is None or draft.payload_bytes <= run.max_bytes:
                return learned, draft
        raise ConfigInvalid(
            f"Class vectors for {len(self._zero_shot)} classes take {draft.payload_bytes:,} bytes "
            f"or more; the limit is {run.max_bytes:,}. Raise it with --max-bytes."
        )

    def _draft(self, learned: LearnedClasses, bits: int) -> Prompt:
        return replace(
            self._template_prompt(),
            method=METHOD,
            classes=learned.classes,
            temperature=learned.temperature,
            unknown_below=unknown_threshold(learned, self._run.unknown_share),
            sketch=learned.sketch,
            unlike_below=learned.unlike_below,
            training=self._run.to_dict(learned, bits),
        )

    def _template_prompt(self) -> Prompt:
        """Return a prompt that has the class names in the template, and nothing learned."""
        names = self._images.class_names
        return Prompt(
            name=self._name,
            method="zero-shot",
            class_names=names,
            templates=(self._run.template,),
            backbone=self._encoders.ref,
            probe=np.zeros(len(names), dtype=np.float16),
            tool_version=__version__,
        )

    def _comparisons(
        self, learned: LearnedClasses, stored: Prompt, test: FeatureSet | None
    ) -> Mapping[str, ZeroShotComparison]:
        """Compare with the class names alone: held-out training images, and the test images."""
        found = {}
        held = learned.out_of_fold
        if held is not None:
            found["cross-validation"] = ZeroShotComparison(
                zero_shot=evaluate(
                    self._logits(self._train.plain[held.images], self._zero_shot), held.labels
                ),
                prompt=evaluate(held.logits.astype(np.float32), held.labels),
            )
        if test is not None:
            classes = self._class_features(stored)
            found["test"] = ZeroShotComparison(
                zero_shot=evaluate(self._logits(test.plain, self._zero_shot), test.labels),
                prompt=evaluate(self._logits(test.plain, classes), test.labels, stored),
            )
        return found

    def _features(self, part: str, images: ImageSet) -> FeatureSet:
        with (
            self._timer("features"),
            self._progress.bar(f"encoding {part}", len(images), "img") as advance,
        ):
            return image_features(
                images, self._encoders, cache=self._cache, workers=self._workers, advance=advance
            )

    def _class_features(self, prompt: Prompt) -> FloatArray:
        return class_features(prompt, self._encoders.bundle.text_side, self._encoders.encode_text)

    def _logits(self, features: FloatArray, classes: FloatArray) -> FloatArray:
        return class_logits(features, classes, self._logit_scale)

    @property
    def _logit_scale(self) -> float:
        return self._encoders.bundle.manifest.logit_scale


def _drawn(dataset: Split, run: ClassVectorRun) -> Split:
    """Return the images to learn from: with shots those drawn, else all but the test images."""
    if run.shots:
        return replace(few_shot(dataset, shots=run.shots, seed=run.seed), val=None)
    given = (*dataset.train.items, *(dataset.val.items if dataset.val else ()))
    return replace(dataset, train=dataset.train.with_items(given), val=None)


def _image_notes(images: Split, shots: int) -> tuple[str, ...]:
    notes = list(images.notes)
    if images.test is None:
        notes.append("There are no test images; the accuracy on new images was not measured.")
    if fewer := shot_faults(images, shots):
        notes.append(f"{len(fewer)} classes have fewer than {shots} training images.")
    return tuple(notes)
