"""The training loop: from images and class names to learned contexts.

It sees training images, and validation images to report on; never a test image. If the image tower
is prompted, image features are computed at every step; otherwise they are looked up.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import ParamsT

from prompt_serve import __version__
from prompt_serve.errors import BackboneUnsupported, ConfigInvalid, PromptError
from prompt_serve.prompts.folding import fold_image, fold_text
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.sequences import plan_sequences, template_ids
from prompt_serve.training.checkpoint import Checkpoint
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.clip.frozen_towers import FrozenTowers
from prompt_serve.training.clip.text_tower import PlanVectors
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.image_batches import (
    ImageBatches,
    ImageData,
    digest_of,
    image_batches,
)
from prompt_serve.training.methods import find_method
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    PromptLearner,
    StepInfo,
    StepOutput,
)
from prompt_serve.training.methods.information_density import mean_information_density
from prompt_serve.training.step_sizes import MEASURED_BATCHES, StepSizes
from prompt_serve.training.without_torch.outcome import EpochRecord
from prompt_serve.types import FloatArray

WARM_UP_LEARNING_RATE = 1e-5
WARM_UP_SHARE = 0.005  # of a relative learning rate: CoOp's 1e-5 of 2e-3
VALIDATION_CHUNK = 64  # images at a time through a prompted image tower
VALIDATE_EVERY = 10  # epochs, if the image tower is prompted; and always after the last


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Result of a run."""

    encodings: Encodings
    template: str  # of the prompt file: at least one token for each context vector
    learning_rate: float
    history: tuple[EpochRecord, ...]
    trained_numbers: int = 0  # parameters of the optimizer; the file may hold fewer numbers


OnEpoch = Callable[[EpochRecord], object]
Batch = tuple[Tensor, Tensor, StepInfo]  # image indices (B,), view indices (B,)


def fit(
    backbone: Backbone,
    class_names: Sequence[str],
    train: ImageData,
    val: ImageData | None,
    config: TrainConfig,
    *,
    learning_rate: float,
    on_epoch: OnEpoch = lambda record: None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Learn contexts by SGD with momentum.

    The last epoch's numbers are kept, as CoOp does; validation chooses nothing here.

    Args:
        backbone: frozen.
        class_names: C names.
        train: features (N, K, E), or pixels if the method prompts the image tower; a step draws
            one of the K views of each of its images.
        val: plain views, only reported on.
        config: its ``learning_rate`` is ignored.
        learning_rate: at the start of the cosine.
        on_epoch: called after every epoch that is trained here.
        checkpoint: written after every epoch; a run that finds its own resumes from it and ends
            with the same bytes as one that was never interrupted.

    Raises:
        ConfigInvalid: the method cannot be learned with these settings, or the checkpoint is of
            another run.
        PromptTooLong: some class names do not fit.
    """
    run = Run(backbone, class_names, config, learning_rate=learning_rate)
    images = image_batches(train, run.towers)
    run.scale_steps(images)
    kept = Checkpoint(checkpoint, run.identity(train)) if checkpoint else None
    history = [EpochRecord(**record) for record in kept.load(run)] if kept else []
    for epoch in range(len(history), config.epochs):
        record = run.epoch(epoch, images, val)
        history.append(record)
        if kept:
            kept.save(run, [record.to_dict() for record in history])
        on_epoch(record)
    return run.fitted(history)


def learning_rate_at(
    epoch: int, *, base: float, epochs: int, warm_up: float = WARM_UP_LEARNING_RATE
) -> float:
    """Return the learning rate of an epoch in CoOp's schedule: a warm-up epoch, then a cosine.

    ``lr(0) = 1e-5`` and ``lr(e) = base / 2 * (1 + cos(pi * (e - 1) / T))`` with T = ``epochs``.
    Dassl computes it recursively, which goes wrong when two schedulers share an optimizer; this
    closed form cannot. It is set once per epoch, not once per step, and never reaches zero.

    Args:
        epoch: from 0 to ``epochs`` - 1.
        base: the learning rate after the warm-up.
        epochs: T, of the whole run.
        warm_up: the learning rate of the first epoch.
    """
    if epoch == 0:
        return min(warm_up, base)
    return 0.5 * base * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def learned_template(template: str, words: int, config: TrainConfig) -> str:
    """Return the template of a learned prompt: one token for each vector.

    If learning starts from the words, all of them stay, also those behind the vectors ("a photo of
    a" with two); otherwise placeholders replace them ("X X X X {}.").
    """
    n_ctx = config.n_vectors or words
    if words == n_ctx or (n_ctx < words and config.settings.placement().starts_from_words):
        return template
    return f"{' '.join(['X'] * n_ctx)} {{}}{template.split('{}')[1]}"


class Run:
    """One training run: a learner, its optimizer and its random numbers."""

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        config: TrainConfig,
        *,
        learning_rate: float,
    ) -> None:
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.config = config
        self.learning_rate = learning_rate
        self.towers = FrozenTowers(backbone, config.precision)
        # Two streams: drawing more numbers for dropout leaves the batches as they were.
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        ids = template_ids(backbone.tokenizer, config.template)
        self.words = backbone.token_embedding[ids].cpu()
        self.learner = self._make_learner().to(backbone.device)
        self.optimizer = self._make_optimizer(self.learner.parameters())
        text = self.folded().text
        template = learned_template(config.template, len(ids), config)
        self.template = config.template if text.context is None else template
        placement = config.settings.placement()
        self.plan = plan_sequences(
            backbone.tokenizer,
            class_names,
            self.template,
            context_length=backbone.ref.context_length,
            n_ctx=None if text.context is None else text.context.shape[-2],
            class_position=placement.class_position,
            class_specific=placement.class_specific,
            causal=backbone.text_tower.causal,
        )
        self.vectors = PlanVectors(
            self.plan, backbone.token_embedding, class_specific=placement.class_specific
        )

    def _make_optimizer(self, parameters: ParamsT) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )

    def scale_steps(self, images: ImageBatches) -> None:
        """Give every parameter the learning rate that a relative rate stands for.

        Done once, before the first step; nothing is done for absolute rates.
        """
        if self.config.step_unit == "absolute":
            return
        state, rng = self.generator.get_state(), np.random.default_rng(self.config.seed)
        self.learner.train()
        sizes = StepSizes(self.learner)
        with sizes.measuring():
            for _ in range(MEASURED_BATCHES):
                size = min(self.config.batch_size, len(images.labels))
                chosen = torch.from_numpy(rng.permutation(len(images.labels))[:size])
                contexts = self.learner.contexts()
                features = images.features(chosen, torch.zeros_like(chosen), contexts.image)
                _, logits = self.scores(features, contexts.text)
                sizes.add(contexts, logits, images.labels[chosen])
        self.generator.set_state(state)
        self.optimizer = self._make_optimizer(
            [{"params": [parameter], "scale": scale} for parameter, scale in sizes.scales()]
        )

    def _make_learner(self) -> PromptLearner:
        config, backbone = self.config, self.backbone
        method = find_method(config.method)
        if method.learner is None:
            raise ConfigInvalid(
                f"Method {config.method!r} learns nothing; there is nothing to train."
            )
        if not config.n_vectors and not len(self.words):
            raise ConfigInvalid(
                f"Template {config.template!r} has no words before the class name to start "
                f"from. Give one that has, or a number of vectors (n_ctx)."
            )
        try:
            image_tower = backbone.image_tower
        except BackboneUnsupported:
            image_tower = None
        inputs = LearnerInputs(
            method=config.method,
            words=self.words,
            n_classes=len(self.class_names),
            generator=self.generator,
            template=config.template,
            given_n_ctx=config.n_vectors,
            init_std=config.init_std,
            balanced=config.step_unit == "relative",
            text_layers=backbone.text_tower.layers,
            embed_dim=backbone.embed_dim,
            image_width=image_tower.width if image_tower else None,
            image_layers=image_tower.layers if image_tower else 0,
            frozen_features=self._frozen_features,
        )
        return method.learner(inputs, config.settings)

    @torch.no_grad()
    def _frozen_features(self, templates: Sequence[str]) -> Tensor:
        """Return class features (C, E) of hand-written templates, averaged, by the fp32 tower."""
        per_template = []
        for template in templates:
            plan = plan_sequences(
                self.backbone.tokenizer,
                self.class_names,
                template,
                context_length=self.backbone.ref.context_length,
                causal=self.backbone.text_tower.causal,
            )
            sequences = PlanVectors(plan, self.backbone.token_embedding)(None)
            per_template.append(self.backbone.text_tower(*sequences))
        return F.normalize(torch.stack(per_template).mean(0), dim=-1)

    def identity(self, train: ImageData) -> dict[str, Any]:
        """Return everything that decides the result of a run, to the last bit."""
        return {
            "config": self.config.to_dict(),
            "learning_rate": self.learning_rate,
            "class_names": list(self.class_names),
            "fingerprint": self.backbone.ref.fingerprint,
            "images": digest_of(train),
            "device": self.backbone.device.type,
            "tool_version": __version__,
        }

    def epoch(self, epoch: int, images: ImageBatches, val: ImageData | None) -> EpochRecord:
        """Train on all images once."""
        start = time.perf_counter()
        batches = self.begin_epoch(epoch, images)
        losses = [self.step(images, *batch) for batch in batches]
        self.learner.after_epoch(batches[-1][-1])
        return self.record(epoch, losses, self.validate(val, epoch), start)

    def begin_epoch(self, epoch: int, images: ImageBatches) -> list[Batch]:
        """Set the learning rate and draw the epoch's batches."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(epoch) * group.get("scale", 1.0)
        self.learner.train()
        epochs = self.config.epochs
        drawn = list(self.batches(len(images.labels), images.n_views))
        return [
            (
                chosen,
                views,
                StepInfo(
                    step=epoch * len(drawn) + index,
                    steps=epochs * len(drawn),
                    epoch=epoch,
                    epochs=epochs,
                ),
            )
            for index, (chosen, views) in enumerate(drawn)
        ]

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate at an epoch."""
        relative = self.config.step_unit == "relative"
        warm_up = WARM_UP_SHARE * self.learning_rate if relative else WARM_UP_LEARNING_RATE
        return learning_rate_at(
            epoch, base=self.learning_rate, epochs=self.config.epochs, warm_up=warm_up
        )

    def record(
        self,
        epoch: int,
        losses: Sequence[Tensor],
        validation: tuple[float | None, float | None],
        start: float,
    ) -> EpochRecord:
        """Return the log line of a finished epoch."""
        accuracy, loss = validation
        return EpochRecord(
            epoch=epoch,
            learning_rate=self.rate_at(epoch),
            loss=float(torch.stack(list(losses)).mean()),
            val_accuracy=accuracy,
            val_loss=loss,
            idk=mean_information_density(self.folded()),
            seconds=time.perf_counter() - start,
            facts=dict(self.learner.log_metrics()),
        )

    def step(
        self, images: ImageBatches, chosen: Tensor, views: Tensor, step_info: StepInfo
    ) -> Tensor:
        """Do one update; return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        contexts = self.learner.contexts()
        image_features = images.features(chosen, views, contexts.image)
        class_features, logits = self.scores(image_features, contexts.text)
        loss = self.learner.backward(
            StepOutput(
                logits=logits,
                labels=images.labels[chosen],
                class_features=class_features,
                image_features=image_features,
                logit_scale=self.backbone.logit_scale,
            )
        )
        self.update(step_info)
        return loss

    def update(self, step_info: StepInfo) -> None:
        """Apply the gradients."""
        self.learner.before_update(step_info)
        self.optimizer.step()
        self.learner.after_update(step_info)

    def scores(self, image_features: Tensor, text: PromptVectors[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class features (C, E) and logits (B, C).

        Class features that depend on the image are (B, C, E).
        """
        own = self.learner.contexts_of_images(image_features)
        if own is None:
            class_features = self.class_features(text)
            return class_features, self.backbone.logit_scale * image_features @ class_features.T
        class_features = self.towers.stacked_class_features(
            self.vectors, [PromptVectors(context=context) for context in own]
        )
        cosines = torch.einsum("be,bce->bc", image_features, class_features)
        return class_features, self.backbone.logit_scale * cosines

    def class_features(self, text: PromptVectors[Tensor]) -> Tensor:
        """Return class features (C, E) for the vectors of the text branch."""
        if text.context is None and not text.keys_values:
            return self._features_of_words
        return self.towers.class_features(self.vectors, text)

    @cached_property
    def _features_of_words(self) -> Tensor:
        """Class features (C, E) of the template, if nothing is learned in the text branch."""
        with torch.no_grad():
            return self.towers.class_features(self.vectors, PromptVectors())

    def batches(self, n_images: int, n_views: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield image and view indices (B,) of each step.

        Images that do not fill a batch are left out, unless there is no full batch (Dassl's
        ``drop_last``).
        """
        order = self.rng.permutation(n_images)
        views = self.rng.integers(0, n_views, size=n_images)
        size = min(self.config.batch_size, n_images)
        for first in range(0, n_images - size + 1, size):
            chosen = slice(first, first + size)
            yield torch.from_numpy(order[chosen]), torch.from_numpy(views[chosen])

    def folded(self) -> Contexts:
        """Return the vectors that the prompt file would fold to now."""
        encodings = self.learner.encodings()
        text = fold_text(encodings.text, self.words.numpy())
        image = fold_image(encodings.image, text)
        return Contexts(text=_tensors(text, self.backbone), image=_tensors(image, self.backbone))

    @torch.no_grad()
    def validate(self, val: ImageData | None, epoch: int) -> tuple[float | None, float | None]:
        """Return accuracy and cross-entropy of the prompt as its file would hold it."""
        if val is None:
            return None, None
        images = image_batches(val, self.towers)
        prompted = find_method(self.config.method).prompts_images(self.config.settings)
        if prompted and (epoch + 1) % VALIDATE_EVERY and epoch + 1 < self.config.epochs:
            return None, None
        self.learner.eval()
        contexts = self.folded()
        logits = []
        for some in torch.split(torch.arange(len(val)), VALIDATION_CHUNK):
            features = images.features(some, torch.zeros_like(some), contexts.image)
            logits.append(self.scores(features, contexts.text)[1])
        return accuracy_and_loss(torch.cat(logits), images.labels)

    def fitted(self, history: Sequence[EpochRecord]) -> Fitted:
        """Return the result after the epochs of ``history``."""
        return Fitted(
            encodings=self.learner.encodings(),
            template=self.template,
            learning_rate=self.learning_rate,
            history=tuple(history),
            trained_numbers=sum(p.numel() for p in self.learner.parameters()),
        )


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy and the mean cross-entropy of logits (N, C)."""
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return float(accuracy), float(F.cross_entropy(logits, labels))


def _tensors(branch: PromptVectors[FloatArray], backbone: Backbone) -> PromptVectors[Tensor]:
    def tensor(array: FloatArray) -> Tensor:
        return torch.from_numpy(array).to(backbone.device)

    return PromptVectors(
        context=None if branch.context is None else tensor(branch.context),
        deeper=tuple(map(tensor, branch.deeper)),
        keys_values=tuple(map(tensor, branch.keys_values)),
    )


def check_names(backbone: Backbone, class_names: Sequence[str], config: TrainConfig) -> list[str]:
    """Return one line for each class name that does not fit beside the template or the context."""
    words = len(template_ids(backbone.tokenizer, config.template))
    faults: list[str] = []
    for template in config.templates or (learned_template(config.template, words, config),):
        try:
            plan_sequences(
                backbone.tokenizer,
                class_names,
                template,
                context_length=backbone.ref.context_length,
            )
        except PromptError as error:
            faults += getattr(error, "faults", ()) or [str(error)]
    return list(dict.fromkeys(faults))
