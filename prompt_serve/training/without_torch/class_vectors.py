"""Learn class vectors from the features of a bundle: ONNX Runtime and numpy, no torch.

It takes the same steps as training with torch, and features that differ in the sixth digit only:
the same images, text features as a prior, closed form, and measurements from the file's content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prompt_serve import __version__
from prompt_serve.closed_form.learn import (
    LearnedClasses,
    first_that_fits,
    learn_classes,
    stored_bytes,
)
from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.scoring import class_logits
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet, image_features
from prompt_serve.training.data.few_shot import few_shot, without_validation
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.training.without_torch.evaluation import (
    Evaluation,
    Scores,
    ZeroShotComparison,
    compare_out_of_fold,
    evaluate,
    metrics_of,
    out_of_fold_scores,
)
from prompt_serve.training.without_torch.outcome import (
    NO_EXTRAS,
    Extras,
    TrainingResult,
    add_class_vectors,
    image_notes,
)
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

    def to_dict(self, bits: int) -> dict[str, Any]:
        """Return the settings as the prompt file stores them."""
        return {
            "method": METHOD,
            "shots": self.shots,
            "seed": self.seed,
            "template": self.template,
            "unknown_share": self.unknown_share,
            "bits": bits,
            "text_prior": self.text_prior,
        }


def train_class_vectors(
    encoders: Encoders,
    dataset: Split,
    run: ClassVectorRun,
    *,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    extras: Extras = NO_EXTRAS,
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
        extras: what is made beside the class vectors.

    Raises:
        ConfigInvalid: there is one class only, or no width fits into ``run.max_bytes``.
        PromptTooLong: a class name does not fit into the text encoder.
    """
    return _Training(encoders, dataset, run, name, cache, workers, progress, extras).result()


class _Training:
    """One run: its images, their features, and the seconds of each stage."""

    def __init__(
        self,
        encoders: Encoders,
        dataset: Split,
        run: ClassVectorRun,
        name: str,
        cache: FeatureCache | None,
        workers: int,
        progress: Progress,
        extras: Extras,
    ) -> None:
        self._encoders, self._run, self._name = encoders, run, name
        self._cache, self._workers, self._progress = cache, workers, progress
        self._extras = extras
        drawn = few_shot(dataset, shots=run.shots, seed=run.seed)
        self._images = without_validation(dataset, drawn, run.shots)
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
            notes=image_notes(images, self._run.shots, needs_validation=False),
            seconds=self._timer.seconds,
            train_accuracy=self._evaluate(stored, self._train).accuracy,
            scores=self._scores(learned, finished, test) if self._extras.scores else None,
        )

    def _within_budget(self) -> tuple[LearnedClasses, Prompt]:
        """Learn with the first number of bits whose tensors fit."""
        run, train, zero_shot = self._run, self._train, self._zero_shot
        keeps_sketch = self._extras.sketch is not False
        bits: int | None = run.bits[0]
        if run.max_bytes is not None:
            bits = first_that_fits(run.bits, zero_shot.shape, run.max_bytes, sketch=keeps_sketch)
        if bits is None:
            least = min(stored_bytes(zero_shot.shape, b, sketch=keeps_sketch) for b in run.bits)
            raise ConfigInvalid(
                f"Class vectors for {len(zero_shot)} classes take {least:,} bytes or more; the "
                f"limit is {run.max_bytes:,}. Raise it with --max-bytes."
            )
        learned = learn_classes(
            train.plain,
            train.labels,
            len(zero_shot),
            logit_scale=self._logit_scale,
            bits=bits,
            seed=run.seed,
            text_features=zero_shot if run.text_prior else None,
        )
        template = replace(self._template_prompt(), method=METHOD, training=run.to_dict(bits))
        draft = add_class_vectors(template, learned, run.unknown_share)
        if not keeps_sketch:
            draft = replace(draft, sketch=None, unlike_below=-1.0)
        return learned, draft

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
        found, held = {}, learned.out_of_fold
        if held is not None:
            zero_shot = self._logits(self._train.plain[held.images], self._zero_shot)
            found["cross-validation"] = compare_out_of_fold(held, zero_shot)
        if test is not None:
            found["test"] = ZeroShotComparison(
                zero_shot=evaluate(self._logits(test.plain, self._zero_shot), test.labels),
                prompt=self._evaluate(stored, test),
            )
        return found

    def _evaluate(self, prompt: Prompt, images: FeatureSet) -> Evaluation:
        logits = self._logits(images.plain, self._class_features(prompt))
        return evaluate(logits, images.labels, prompt, images.plain)

    def _scores(
        self, learned: LearnedClasses, prompt: Prompt, test: FeatureSet | None
    ) -> Scores | None:
        """Return the scores of the test images, else of training images that were held out."""
        if test is not None and self._images.test is not None:
            logits = self._logits(test.plain, self._class_features(prompt))
            items = self._images.test.items
            return Scores.of_images("test", items, prompt, logits, test.plain)
        if learned.out_of_fold is None:
            return None
        items = self._images.train.items
        return out_of_fold_scores(
            learned.out_of_fold, prompt, items, self._train.plain, seed=self._run.seed
        )

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
