"""From a dataset to a prompt file: draw, encode, learn, round, evaluate."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prompt_serve import __version__
from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.training.calibration import calibrate
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.features import FeatureCache, image_features
from prompt_serve.training.data.few_shot import Sampler, few_shot, shot_faults
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.data.loading import image_faults, read_dataset
from prompt_serve.training.data.pixels import image_pixels
from prompt_serve.training.evaluate import (
    Evaluation,
    evaluate_prompt,
    probed_features,
    prompt_logits,
)
from prompt_serve.training.loop import EpochRecord, Fitted, check_names, fit
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Advance, Progress, no_advance
from prompt_serve.training.select_tokens import choose_tokens, chooses_tokens
from prompt_serve.training.settings import AUTO

PLAIN_VIEW = 0


@dataclass(frozen=True, kw_only=True)
class ZeroShotComparison:
    """The same images by the prompt and by the template alone."""

    zero_shot: Evaluation
    prompt: Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What ``train_prompt`` gives back."""

    prompt: Prompt
    comparisons: Mapping[str, ZeroShotComparison]  # by part: "val", "test"; only those that exist
    history: tuple[EpochRecord, ...]
    images: Mapping[str, int]  # used, by part
    notes: tuple[str, ...]  # what the user should know
    seconds: Mapping[str, float]  # by stage: "features", "learning", "evaluation"
    trained_numbers: int = 0  # that the optimizer changed; the file may hold fewer


OnEpoch = Callable[[EpochRecord], object]


def open_dataset(
    source: Path,
    backbone: Backbone,
    config: TrainConfig,
    *,
    images: Path | None = None,
    rename: Mapping[str, str] | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> Split:
    """Read a dataset and check all that training with ``config`` will want of it.

    Raises:
        DatasetInvalid: everything that is wrong, from empty classes to names that are too long.
    """

    def unreadable(split: Split) -> list[str]:
        items = [item for part in split.parts.values() for item in part.items]
        with progress.bar("checking images", len(items), "img") as advance:
            return image_faults(items, workers=workers, advance=advance)

    def too_few(split: Split) -> list[str]:
        return [] if config.fewer_shots_ok else shot_faults(split, config.shots)

    def too_long(split: Split) -> list[str]:
        return check_names(backbone, split.class_names, config)

    return read_dataset(
        source, images=images, rename=rename, checks=(too_few, too_long, unreadable)
    )


def image_data(
    images: ImageSet,
    backbone: Backbone,
    *,
    as_pixels: bool = False,
    views: int = PLAIN_VIEW,
    seed: int = 0,
    cache: FeatureCache | None = None,
    workers: int = 4,
    advance: Advance = no_advance,
) -> ImageData:
    """Images as learning and evaluation take them: features, or pixels where the image tower is
    prompted."""
    if as_pixels:
        return image_pixels(
            images,
            backbone.preprocessing,
            views=views,
            seed=seed,
            workers=workers,
            advance=advance,
        )
    return image_features(
        images, backbone, views=views, seed=seed, cache=cache, workers=workers, advance=advance
    )


def train_prompt(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_epoch: OnEpoch = lambda record: None,
    checkpoint: Path | None = None,
    draw: Sampler = few_shot,
) -> TrainingResult:
    """Learn a prompt for ``dataset``.

    The test images are encoded and looked at once, after learning has ended; nothing is chosen by
    them. The same dataset, backbone and configuration give the same prompt, bit for bit, on the
    same machine.

    Args:
        backbone: frozen.
        dataset: all images; ``config.shots`` and ``config.seed`` draw those to learn from.
        config: how.
        name: of the prompt, kept in its file.
        cache: of image features; None keeps none.
        workers: threads that decode images.
        progress: where bars are shown.
        on_epoch: called after every epoch of every fit.
        checkpoint: written after every epoch; a run that is stopped goes on from it. Where several
            learning rates are tried, each has its own beside it.
        draw: draws ``config.shots`` images a class with ``config.seed``.
    """
    clock = StageTimer()
    prepare = FeatureProvider(backbone, clock, cache=cache, workers=workers, progress=progress)
    drawn = draw(dataset, shots=config.shots, seed=config.seed)
    notes = notes_on(drawn, config)
    held_out = prepare.held_out(drawn, config)
    fitted: Fitted | None = None
    if METHODS[config.method].learner is not None:
        train, val = prepare("train", drawn.train, config, config.views), held_out.get("val")

        def learn(config: TrainConfig, own: Path | None) -> Fitted:
            return _learn(
                backbone, dataset.class_names, train, val, config, progress, on_epoch, own
            )

        with clock("learning"):
            if chooses_tokens(config):
                choice = choose_tokens(config, backbone, val, learn, checkpoint)
                fitted, notes = choice.chosen.fitted, (*notes, choice.note)
                config = config.replace(tokens=choice.chosen.tokens)
            else:
                fitted = learn(config, checkpoint)
    draft = draft_prompt(backbone, dataset.class_names, config, fitted, name)
    return training_result(backbone, draft, config, fitted, drawn, held_out, notes, clock)


class StageTimer:
    """Adds up the seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class FeatureProvider:
    """Makes images ready for learning and evaluation, each set once however often it is asked for.

    Args:
        backbone: frozen.
        clock: told the seconds, as stage "features".
        cache: of image features; None keeps none on disk.
        workers: threads that decode images.
        progress: where bars are shown.
    """

    def __init__(
        self,
        backbone: Backbone,
        clock: StageTimer,
        *,
        cache: FeatureCache | None = None,
        workers: int = 4,
        progress: Progress = SILENT,
    ) -> None:
        self._backbone, self._clock, self._progress = backbone, clock, progress
        self._cache, self._workers = cache, workers
        self._done: dict[Hashable, ImageData] = {}

    def __call__(
        self, part: str, images: ImageSet, config: TrainConfig, views: int = PLAIN_VIEW
    ) -> ImageData:
        """Images of a part in ``views`` augmented views, or in the plain one."""
        as_pixels = METHODS[config.method].prompts_images(config.settings)
        if as_pixels:
            # One that cannot be prompted is refused before images are decoded.
            _ = self._backbone.image_tower
        key = (as_pixels, images.items, views, config.seed if views else None)
        if key not in self._done:
            self._done[key] = self._prepared(part, images, config, views, as_pixels)
        return self._done[key]

    def held_out(self, drawn: Split, config: TrainConfig) -> dict[str, ImageData]:
        """Plain views of the validation and test images, where there are any."""
        return {
            part: self(part, images, config)
            for part, images in drawn.parts.items()
            if part != "train"
        }

    def _prepared(
        self, part: str, images: ImageSet, config: TrainConfig, views: int, as_pixels: bool
    ) -> ImageData:
        doing = f"{'decoding' if as_pixels else 'encoding'} {part}"
        with self._clock("features"), self._progress.bar(doing, len(images), "img") as advance:
            return image_data(
                images,
                self._backbone,
                as_pixels=as_pixels,
                views=views,
                seed=config.seed,
                cache=self._cache,
                workers=self._workers,
                advance=advance,
            )


def training_result(
    backbone: Backbone,
    draft: Prompt,
    config: TrainConfig,
    fitted: Fitted | None,
    drawn: Split,
    held_out: Mapping[str, ImageData],
    notes: tuple[str, ...],
    clock: StageTimer,
) -> TrainingResult:
    """Calibrate a prompt, measure it, and put together what there is to say of it."""
    images = {part: len(images) for part, images in drawn.parts.items()}
    with clock("evaluation"):
        # Through the file's bytes on purpose: what is measured is what will be served.
        stored = _calibrated(from_bytes(to_bytes(draft)), backbone, config, held_out.get("val"))
        comparisons = _compare(backbone, stored, held_out)
        finished = replace(
            stored,
            probe=probe(probed_features(stored, backbone)),
            metrics=_metrics(comparisons, images),
        )
    return TrainingResult(
        prompt=finished,
        comparisons=comparisons,
        history=fitted.history if fitted else (),
        images=images,
        notes=notes,
        seconds=clock.seconds,
        trained_numbers=fitted.trained_numbers if fitted else 0,
    )


def _learn(
    backbone: Backbone,
    class_names: tuple[str, ...],
    train: ImageData,
    val: ImageData | None,
    config: TrainConfig,
    progress: Progress,
    on_epoch: OnEpoch,
    checkpoint: Path | None,
) -> Fitted:
    rates = learning_rates(config, val)
    fits = []
    with progress.bar(f"learning {config.method}", config.epochs * len(rates), "epoch") as advance:

        def after(record: EpochRecord) -> None:
            advance(1)
            on_epoch(record)

        for rate in rates:
            own = checkpoint
            if checkpoint and len(rates) > 1:
                own = checkpoint.with_name(f"{checkpoint.name}.{rate:g}")
            fits.append(
                fit(
                    backbone,
                    class_names,
                    train,
                    val,
                    config,
                    learning_rate=rate,
                    on_epoch=after,
                    checkpoint=own,
                )
            )
    return min(fits, key=selection_key)


def learning_rates(config: TrainConfig, val: ImageData | None) -> tuple[float, ...]:
    """Those to try."""
    method = METHODS[config.method]
    if config.learning_rate is None:
        return (method.learning_rate,)
    if config.learning_rate != AUTO:
        return (float(config.learning_rate),)
    if val is None:
        raise ConfigInvalid(
            "learning_rate 'auto' chooses by validation images, and there are none. "
            f"Give a number, such as {method.learning_rate}, or more images."
        )
    return method.learning_rates


def selection_key(fitted: Fitted) -> tuple[float, float]:
    """Sorts fits by validation accuracy, then by validation loss; best first."""
    last = fitted.history[-1]
    return -(last.val_accuracy or 0.0), last.val_loss or 0.0


def draft_prompt(
    backbone: Backbone,
    class_names: tuple[str, ...],
    config: TrainConfig,
    fitted: Fitted | None,
    name: str,
) -> Prompt:
    """What was learned (None: nothing) as a prompt, without what is measured afterwards."""
    templates = (fitted.template,) if fitted else config.templates or (config.template,)
    training = config.to_dict()
    if fitted:
        training["learning_rate"] = fitted.learning_rate
    return Prompt(
        name=name,
        method=config.method,
        class_names=class_names,
        templates=templates,
        backbone=backbone.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),  # filled in once it can be computed
        class_position=config.settings.placement().class_position if fitted else "end",
        text=fitted.encodings.text if fitted else None,
        image=fitted.encodings.image if fitted else None,
        training=training,
        tool_version=__version__,
    )


def _calibrated(
    prompt: Prompt, backbone: Backbone, config: TrainConfig, val: ImageData | None
) -> Prompt:
    if val is None or not (config.calibrate or config.unknown_share):
        return prompt
    found = calibrate(
        prompt_logits(prompt, backbone, val), val.labels, unknown_share=config.unknown_share
    )
    temperature = found.temperature if config.calibrate else 1.0
    return replace(prompt, temperature=temperature, unknown_below=found.unknown_below)


def _compare(
    backbone: Backbone, prompt: Prompt, held_out: Mapping[str, ImageData]
) -> dict[str, ZeroShotComparison]:
    zero_shot = _zero_shot(prompt)
    return {
        part: ZeroShotComparison(
            zero_shot=evaluate_prompt(zero_shot, backbone, images),
            prompt=evaluate_prompt(prompt, backbone, images),
        )
        for part, images in held_out.items()
    }


def _metrics(
    comparisons: Mapping[str, ZeroShotComparison], images: Mapping[str, int]
) -> dict[str, Any]:
    """What the prompt file says of its accuracy."""
    parts = {
        part: {
            **comparison.prompt.to_dict(),
            "zero_shot_accuracy": round(comparison.zero_shot.accuracy, 4),
        }
        for part, comparison in comparisons.items()
    }
    return {**parts, "images": dict(images)}


def _zero_shot(prompt: Prompt) -> Prompt:
    """What the user would have without learning: the template that learning started from."""
    if not prompt.encodings:
        return prompt
    template = prompt.training["template"]
    return replace(
        prompt,
        text=None,
        image=None,
        templates=(template,),
        class_position="end",
        temperature=1.0,
        unknown_below=0.0,
    )


def notes_on(drawn: Split, config: TrainConfig) -> tuple[str, ...]:
    """What the user should know of the images."""
    notes = []
    if drawn.val is None:
        notes.append("There are no images left to validate on; going on without.")
    if drawn.test is None:
        notes.append("There are no test images; the accuracy on new images was not measured.")
    fewer = shot_faults(drawn, config.shots)
    if fewer:
        notes.append(f"{len(fewer)} classes have fewer than {config.shots} training images.")
    return tuple(notes)
