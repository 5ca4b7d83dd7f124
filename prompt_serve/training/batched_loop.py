"""Train several runs at once: the text tower takes the vectors of R runs as one batch.

A step of a small task consists of many small operations, and R runs (seeds, ranks, learning rates)
trained one after the other do all of them R times. Here each run keeps its learner, optimizer,
random numbers and batches, and only the text tower is shared: its forward and backward pass run
once for all. Runs do not affect each other: each ends where it would alone, up to the rounding of
sums in another order.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import CachedImages, ImageData
from prompt_serve.training.loop import Batch, Fitted, Run, accuracy_and_loss
from prompt_serve.training.methods import find_method
from prompt_serve.training.methods.base import NO_VECTORS, PromptLearner, StepOutput
from prompt_serve.training.without_torch.outcome import EpochRecord

OnBatchedEpoch = Callable[[int, EpochRecord], object]  # number of the run, its record


def fit_batched(
    backbone: Backbone,
    class_names: Sequence[str],
    trains: Sequence[FeatureSet],
    vals: Sequence[FeatureSet | None],
    configs: Sequence[TrainConfig],
    learning_rates: Sequence[float],
    *,
    on_epoch: OnBatchedEpoch = lambda index, record: None,
) -> list[Fitted]:
    """Train R text prompts at once; see ``fit`` for one.

    Args:
        backbone: frozen.
        class_names: C names, the same in all runs.
        trains: training features of each run; as many images in each.
        vals: plain views of each run to report on.
        configs: one for each run. Template, number of vectors, depth, epochs, batch size and
            precision must agree; methods, seeds, ranks, bits and the rest may differ.
        learning_rates: of each run, at the start of the cosine.
        on_epoch: called with the number of the run and its record, after every epoch.

    Raises:
        ConfigInvalid: a run cannot be batched, or differs from the others in shape; the error
            lists all faults.
        PromptTooLong: some class names do not fit.
    """
    runs = [
        Run(backbone, class_names, config, learning_rate=rate)
        for config, rate in zip(configs, learning_rates, strict=True)
    ]
    stack = Stack(runs, trains, vals)
    histories: list[list[EpochRecord]] = [[] for _ in runs]
    for epoch in range(runs[0].config.epochs):
        for index, record in enumerate(stack.epoch(epoch)):
            histories[index].append(record)
            on_epoch(index, record)
    return [run.fitted(history) for run, history in zip(runs, histories, strict=True)]


def batching_faults(run: Run, train: ImageData) -> list[str]:
    """Return the reasons why a run cannot share the text tower; empty if it can."""
    learner, config = run.learner, run.config
    kind, faults = type(learner), []
    if find_method(config.method).prompts_images(config.settings) or not isinstance(
        train, FeatureSet
    ):
        faults.append(f"method {config.method!r} prompts the image tower")
    if kind.contexts_of_images is not PromptLearner.contexts_of_images:
        faults.append(f"method {config.method!r} makes its vectors from each image")
    if kind.backward is not PromptLearner.backward:
        faults.append(f"method {config.method!r} makes its gradients by several passes")
    if run.folded().text.keys_values:
        faults.append(f"method {config.method!r} learns keys and values")
    return faults


def shape_of(run: Run, train: ImageData) -> Mapping[str, Any]:
    """Return what must agree in all runs of a stack, by the names of the settings."""
    config, text = run.config, run.folded().text
    n_images, placement = len(train), config.settings.placement()
    size = min(config.batch_size, n_images)
    return {
        "template": run.template,
        "n_ctx": None if text.context is None else text.context.shape[-2],
        "depth": 1 + len(text.deeper),
        "class_position": placement.class_position,
        "class_specific": placement.class_specific,
        "precision": config.precision,
        "epochs": config.epochs,
        "steps per epoch": n_images // size,
    }


class Stack:
    """R runs that take every step together.

    Raises:
        ConfigInvalid: see ``fit_batched``.
    """

    def __init__(
        self, runs: Sequence[Run], trains: Sequence[FeatureSet], vals: Sequence[FeatureSet | None]
    ) -> None:
        _check(runs, trains)
        self.runs = tuple(runs)
        self._towers, self._vectors = runs[0].towers, runs[0].vectors
        for run in runs:
            run.towers = self._towers  # one rounded copy of the weights is enough
        sources: dict[int, CachedImages] = {}  # equal sets are moved to the device once

        def source(data: FeatureSet) -> CachedImages:
            return sources.setdefault(id(data), CachedImages(data, runs[0].backbone.device))

        self._images = [source(data) for data in trains]
        for run, images in zip(runs, self._images, strict=True):
            run.scale_steps(images)
        self._vals = [None if data is None else source(data) for data in vals]

    def epoch(self, epoch: int) -> list[EpochRecord]:
        """Train every run on its images once; return their records, each with its share of time."""
        start = time.perf_counter()
        batches_of_runs = [
            run.begin_epoch(epoch, images)
            for run, images in zip(self.runs, self._images, strict=True)
        ]
        losses = [self.step(batches) for batches in zip(*batches_of_runs, strict=True)]
        for run, batches in zip(self.runs, batches_of_runs, strict=True):
            run.learner.after_epoch(batches[-1][-1])
        records = [
            run.record(epoch, own, validation, start)
            for run, own, validation in zip(
                self.runs, zip(*losses, strict=True), self.validate(), strict=True
            )
        ]
        share = (time.perf_counter() - start) / len(records)
        return [replace(record, seconds=share) for record in records]

    def step(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Do one update of every run; return their losses."""
        for run in self.runs:
            run.optimizer.zero_grad(set_to_none=True)
        class_features = self.class_features([run.learner.contexts().text for run in self.runs])
        losses = [
            run.learner.loss(_seen(run, images, batch, own))
            for run, images, batch, own in zip(
                self.runs, self._images, batches, class_features, strict=True
            )
        ]
        # The gradient of a sum with respect to one run's numbers is that of its own loss.
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        for run, (_, _, step_info) in zip(self.runs, batches, strict=True):
            run.update(step_info)
        return [loss.detach() for loss in losses]

    @torch.no_grad()
    def validate(self) -> list[tuple[float | None, float | None]]:
        """Return accuracy and cross-entropy of each prompt as its file would hold it."""
        if all(images is None for images in self._vals):
            return [(None, None)] * len(self.runs)
        for run in self.runs:
            run.learner.eval()
        class_features = self.class_features([run.folded().text for run in self.runs])
        scale = self.runs[0].backbone.logit_scale
        return [
            (None, None)
            if images is None
            else accuracy_and_loss(scale * images.plain @ own.T, images.labels)
            for images, own in zip(self._vals, class_features, strict=True)
        ]

    def class_features(self, texts: Sequence[PromptVectors[Tensor]]) -> Tensor:
        """Return class features (R, C, E) for the vectors of all runs."""
        return self._towers.stacked_class_features(self._vectors, texts)


def _seen(run: Run, images: CachedImages, batch: Batch, class_features: Tensor) -> StepOutput:
    chosen, views, _ = batch
    image_features = images.features(chosen, views, NO_VECTORS)
    scale = run.backbone.logit_scale
    return StepOutput(
        logits=scale * image_features @ class_features.T,
        labels=images.labels[chosen],
        class_features=class_features,
        image_features=image_features,
        logit_scale=scale,
    )


def _check(runs: Sequence[Run], trains: Sequence[ImageData]) -> None:
    faults = [
        fault
        for run, train in zip(runs, trains, strict=True)
        for fault in batching_faults(run, train)
    ]
    if not faults:
        shapes = [shape_of(run, train) for run, train in zip(runs, trains, strict=True)]
        for name in shapes[0]:
            values = list(dict.fromkeys(shape[name] for shape in shapes))
            if len(values) > 1:
                faults.append(f"{name} differs: {', '.join(map(repr, values))}")
    if faults:
        raise ConfigInvalid(
            "These runs cannot be trained at once; train them one after the other:",
            list(dict.fromkeys(faults)),
        )
