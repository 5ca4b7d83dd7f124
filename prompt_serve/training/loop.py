"""The training loop: from images and class names to learned contexts.

It sees training images, and validation images to report on; never a test image. Image features are
looked up where the image tower is not prompted, and computed at every step where it is.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    PromptLearner,
    StepInfo,
    StepOutput,
)
from prompt_serve.training.schedule import learning_rate_at
from prompt_serve.types import FloatArray

VALIDATION_CHUNK = 64  # images at a time through a prompted image tower
VALIDATE_EVERY = 10  # epochs, where the image tower is prompted; and always after the last


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of the log."""

    epoch: int  # from 0
    learning_rate: float
    loss: float  # mean over the steps of the epoch
    val_accuracy: float | None  # after the epoch; None without validation images
    val_loss: float | None
    # ID_k for k = 1, 2, ...: the share of the k largest singular values of the vectors in their
    # sum (DIP, section 3); the nearer to 1, the denser. Mean over the blocks.
    idk: tuple[float, ...]
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the method, such as tokens left

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came of a run."""

    encodings: Encodings
    template: str  # as the prompt file wants it: one token or more for each context vector
    learning_rate: float
    history: tuple[EpochRecord, ...]
    trained_numbers: int = 0  # that the optimizer changed; the file may hold fewer


OnEpoch = Callable[[EpochRecord], object]
Batch = tuple[Tensor, Tensor, StepInfo]  # images (B,), the view of each (B,), where the run stands


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
        train: features (N, K, E), or pixels where the method prompts the image tower; a step draws
            one of the K views of each of its images.
        val: plain views, only reported on.
        config: its ``learning_rate`` is not looked at.
        learning_rate: at the start of the cosine.
        on_epoch: called after every epoch that is learned here.
        checkpoint: written after every epoch; a run that finds its own there goes on from it and
            ends with the same bytes as one that was never stopped.

    Raises:
        ConfigInvalid: the method cannot be learned with these settings, or the checkpoint is of
            another run.
        PromptTooLong: some class names do not fit.
    """
    run = Run(backbone, class_names, config, learning_rate=learning_rate)
    images = image_batches(train, run.towers)
    kept = Checkpoint(checkpoint, run.identity(train)) if checkpoint else None
    history = [EpochRecord(**record) for record in kept.load(run)] if kept else []
    for epoch in range(len(history), config.epochs):
        record = run.epoch(epoch, images, val)
        history.append(record)
        if kept:
            kept.save(run, [record.to_dict() for record in history])
        on_epoch(record)
    return run.fitted(history)


def learned_template(template: str, words: int, config: TrainConfig) -> str:
    """The template of a learned prompt: one token for each vector.

    Words that learning starts from stay, also those behind the vectors ("a photo of a" with two);
    else placeholders stand in for them ("X X X X {}.").
    """
    n_ctx = config.n_ctx or words
    starts_from_words = config.init == "template" and config.frozen_init
    if words == n_ctx or (n_ctx < words and starts_from_words):
        return template
    return f"{' '.join(['X'] * n_ctx)} {{}}{template.split('{}')[1]}"


def information_density(vectors: Tensor) -> tuple[float, ...]:
    """ID_k for k = 1..min(M, D) of vectors (M, D); the mean over C of (C, M, D)."""
    singular = torch.linalg.svdvals(vectors.detach().float().cpu())
    shares = singular.cumsum(-1) / singular.sum(-1, keepdim=True).clamp(min=1e-12)
    return tuple(round(float(s), 6) for s in shares.reshape(-1, shares.shape[-1]).mean(0))


def mean_information_density(contexts: Contexts) -> tuple[float, ...]:
    """ID_k of each block's vectors, averaged; of the text branch where it has any."""
    for branch in (contexts.text, contexts.image):
        blocks = [] if branch.context is None else [branch.context, *branch.deeper]
        blocks += [rows for rows in branch.keys_values if len(rows)]
        if blocks:
            rows = [information_density(block) for block in blocks]
            longest = max(map(len, rows))
            padded = np.array([[*row, *[1.0] * (longest - len(row))] for row in rows])
            return tuple(round(float(share), 6) for share in padded.mean(axis=0))
    return ()


class Run:
    """One run: a learner, its optimizer and its random numbers."""

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
        self.config = config = config.resolved()
        self.learning_rate = learning_rate
        self.towers = FrozenTowers(backbone, config.precision)
        # Two streams: drawing more numbers for dropout leaves the batches as they were.
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        ids = template_ids(backbone.tokenizer, config.template)
        self.words = backbone.token_embedding[ids].cpu()
        self.learner = self._make_learner().to(backbone.device)
        self.optimizer = torch.optim.SGD(
            self.learner.parameters(),
            lr=learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        text = self.folded().text
        template = learned_template(config.template, len(ids), config)
        self.template = config.template if text.context is None else template
        self.plan = plan_sequences(
            backbone.tokenizer,
            class_names,
            self.template,
            context_length=backbone.ref.context_length,
            n_ctx=None if text.context is None else text.context.shape[-2],
            class_position=config.class_position,
            class_specific=config.class_specific,
            causal=backbone.text_tower.causal,
        )
        self.vectors = PlanVectors(self.plan, backbone.token_embedding)

    def _make_learner(self) -> PromptLearner:
        config, backbone = self.config, self.backbone
        make = METHODS[config.method].learner
        if make is None:
            raise ConfigInvalid(
                f"Method {config.method!r} learns nothing; there is nothing to fit."
            )
        if not config.n_ctx and not len(self.words):
            raise ConfigInvalid(
                f"Template {config.template!r} has no words before the class name to start "
                f"from. Give one that has, or a number of vectors (n_ctx)."
            )
        try:
            image_tower = backbone.image_tower
        except BackboneUnsupported:
            image_tower = None
        return make(
            LearnerInputs(
                config=config,
                words=self.words,
                n_classes=len(self.class_names),
                generator=self.generator,
                text_layers=backbone.text_tower.layers,
                embed_dim=backbone.embed_dim,
                image_width=image_tower.width if image_tower else None,
                image_layers=image_tower.layers if image_tower else 0,
                frozen_features=self._frozen_features,
            )
        )

    @torch.no_grad()
    def _frozen_features(self, templates: Sequence[str]) -> Tensor:
        """(C, E) class features of hand-written templates, averaged, by the float32 tower."""
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
        """What makes two runs the same one, to the last bit."""
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
        """Go through the images once."""
        start = time.perf_counter()
        batches = self.begin_epoch(epoch, images)
        losses = [self.step(images, *batch) for batch in batches]
        self.learner.after_epoch(batches[-1][-1])
        return self.record(epoch, losses, self.validate(val, epoch), start)

    def begin_epoch(self, epoch: int, images: ImageBatches) -> list[Batch]:
        """Set the learning rate and draw the epoch's batches."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(epoch)
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
        """Of the schedule."""
        return learning_rate_at(epoch, base=self.learning_rate, epochs=self.config.epochs)

    def record(
        self,
        epoch: int,
        losses: Sequence[Tensor],
        validation: tuple[float | None, float | None],
        start: float,
    ) -> EpochRecord:
        """What to log of an epoch that is done."""
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

    def step(self, images: ImageBatches, chosen: Tensor, views: Tensor, moment: StepInfo) -> Tensor:
        """One update; returns the loss."""
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
        self.update(moment)
        return loss

    def update(self, moment: StepInfo) -> None:
        """Follow the gradients that are there."""
        self.learner.before_update(moment)
        self.optimizer.step()
        self.learner.after_update(moment)

    def scores(self, image_features: Tensor, text: PromptVectors[Tensor]) -> tuple[Tensor, Tensor]:
        """Class features (C, E) and logits (B, C); class features (B, C, E) where they depend on
        the image."""
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
        """(C, E) of the text branch's vectors."""
        if text.context is None and not text.keys_values:
            return self._features_of_words
        return self.towers.class_features(self.vectors(text.context), text)

    @cached_property
    def _features_of_words(self) -> Tensor:
        """Of a text branch that learns nothing: the same at every step."""
        with torch.no_grad():
            return self.towers.class_features(self.vectors(None), PromptVectors())

    def batches(self, n_images: int, n_views: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Image and view indices of each step; what does not fill a batch is left out, unless it
        is all there is (Dassl's ``drop_last``)."""
        order = self.rng.permutation(n_images)
        views = self.rng.integers(0, n_views, size=n_images)
        size = min(self.config.batch_size, n_images)
        for first in range(0, n_images - size + 1, size):
            chosen = slice(first, first + size)
            yield torch.from_numpy(order[chosen]), torch.from_numpy(views[chosen])

    def folded(self) -> Contexts:
        """What the prompt file would fold to, as it stands."""
        encodings = self.learner.encodings()
        text = fold_text(encodings.text, self.words.numpy())
        image = fold_image(encodings.image, text)
        return Contexts(text=_tensors(text, self.backbone), image=_tensors(image, self.backbone))

    @torch.no_grad()
    def validate(self, val: ImageData | None, epoch: int) -> tuple[float | None, float | None]:
        """Accuracy and cross-entropy of what the prompt file would hold."""
        if val is None:
            return None, None
        images = image_batches(val, self.towers)
        prompted = METHODS[self.config.method].prompts_images(self.config)
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
        """The run as it stands after the epochs of ``history``."""
        return Fitted(
            encodings=self.learner.encodings(),
            template=self.template,
            learning_rate=self.learning_rate,
            history=tuple(history),
            trained_numbers=sum(p.numel() for p in self.learner.parameters()),
        )


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of scores (N, C): the share that is right, and the mean cross-entropy."""
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
    """Faults of class names that do not fit beside the template or the context; one line each."""
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
