"""The training loop: from image features and class names to a learned context.

It sees training features, and validation features to report on; never a test image.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.assembly import plan_sequences, template_ids
from prompt_serve.encodings import Encoding
from prompt_serve.errors import ConfigInvalid, PromptError
from prompt_serve.training.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.features import FeatureSet
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import PromptLearner, Start
from prompt_serve.training.schedule import learning_rate_at
from prompt_serve.training.text_tower import PlanVectors


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of the log."""

    epoch: int  # from 0
    learning_rate: float
    loss: float  # mean over the steps of the epoch
    val_accuracy: float | None  # after the epoch; None without validation images
    val_loss: float | None
    # ID_k of the context for k = 1..M: the share of its k largest singular values in their sum
    # (DIP, section 3); the flatter, the denser the information.
    idk: tuple[float, ...]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came of a run."""

    encoding: Encoding
    template: str  # as the prompt file wants it: one token for each context vector
    learning_rate: float
    history: tuple[EpochRecord, ...]


OnEpoch = Callable[[EpochRecord], object]


def fit(
    backbone: Backbone,
    class_names: Sequence[str],
    train: FeatureSet,
    val: FeatureSet | None,
    config: TrainConfig,
    *,
    learning_rate: float,
    on_epoch: OnEpoch = lambda record: None,
) -> Fitted:
    """Learn one context by SGD with momentum on the cross-entropy.

    The last epoch's numbers are kept, as CoOp does; validation chooses nothing here.

    Args:
        backbone: frozen.
        class_names: C names.
        train: (N, K, E) features; a step draws one of the K views of each of its images.
        val: (N', 1, E) features, only reported on.
        config: its ``learning_rate`` is not looked at.
        learning_rate: at the start of the cosine.
        on_epoch: called after every epoch.

    Raises:
        ConfigInvalid: the method cannot be learned with these settings.
        PromptTooLong: some class names do not fit.
    """
    run = _Run(backbone, class_names, config)
    learner = run.learner
    optimiser = torch.optim.SGD(
        learner.parameters(),
        lr=learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    device = backbone.device
    features, labels = (torch.from_numpy(a).to(device) for a in (train.features, train.labels))
    history = []
    step = 0
    for epoch in range(config.epochs):
        start = time.perf_counter()
        rate = learning_rate_at(epoch, base=learning_rate, epochs=config.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        learner.train()
        losses = []
        for images, views in run.batches(len(train), train.features.shape[1]):
            optimiser.zero_grad(set_to_none=True)
            loss = run.loss(features[images, views], labels[images])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            losses.append(loss.detach())
            step += 1
            learner.after_step(step)
        val_accuracy, val_loss = run.validate(val)
        record = EpochRecord(
            epoch=epoch,
            learning_rate=rate,
            loss=float(torch.stack(losses).mean()),
            val_accuracy=val_accuracy,
            val_loss=val_loss,
            idk=run.idk(),
            seconds=time.perf_counter() - start,
        )
        history.append(record)
        on_epoch(record)
    return Fitted(
        encoding=learner.encoding(),
        template=run.template,
        learning_rate=learning_rate,
        history=tuple(history),
    )


def learned_template(template: str, words: int, n_ctx: int) -> str:
    """The template of a learned prompt: one token for each of the ``n_ctx`` vectors.

    The words stay where they are as many; else placeholders stand in for them ("X X X X {}.").
    """
    if words == n_ctx:
        return template
    return f"{' '.join(['X'] * n_ctx)} {{}}{template.split('{}')[1]}"


def information_density(context: Tensor) -> tuple[float, ...]:
    """ID_k for k = 1..min(M, D) of a context (M, D); the mean over C of one (C, M, D)."""
    singular = torch.linalg.svdvals(context.detach().float().cpu())
    shares = singular.cumsum(-1) / singular.sum(-1, keepdim=True).clamp(min=1e-12)
    return tuple(round(float(s), 6) for s in shares.reshape(-1, shares.shape[-1]).mean(0))


class _Run:
    """What stays the same over the steps of one run."""

    def __init__(self, backbone: Backbone, class_names: Sequence[str], config: TrainConfig) -> None:
        self.backbone = backbone
        self.config = config
        # Two streams: drawing more numbers for dropout leaves the batches as they were.
        self.rng = np.random.default_rng(config.seed)
        start = self._start(len(class_names))
        make = METHODS[config.method].learner
        if make is None:
            raise ConfigInvalid(
                f"Method {config.method!r} learns nothing; there is nothing to fit."
            )
        self.learner: PromptLearner = make(start).to(backbone.device)
        self.template = learned_template(config.template, start.words.shape[0], start.n_ctx)
        plan = plan_sequences(
            backbone.tokenizer,
            class_names,
            self.template,
            context_length=backbone.ref.context_length,
            n_ctx=start.n_ctx,
            class_position=config.class_position,
            class_specific=config.class_specific,
            causal=backbone.text_tower.causal,
        )
        self.vectors = PlanVectors(plan, backbone.token_embedding)

    def _start(self, n_classes: int) -> Start:
        ids = template_ids(self.backbone.tokenizer, self.config.template)
        start = Start(
            config=self.config,
            words=self.backbone.token_embedding[ids].cpu(),
            n_classes=n_classes,
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        if not start.n_ctx:
            raise ConfigInvalid(
                f"Template {self.config.template!r} has no words before the class name to start "
                f"from. Give one that has, or a number of vectors (n_ctx)."
            )
        return start

    def batches(self, n_images: int, n_views: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Image and view indices of each step; what does not fill a batch is left out, unless it
        is all there is (Dassl's ``drop_last``)."""
        order = self.rng.permutation(n_images)
        views = self.rng.integers(0, n_views, size=n_images)
        size = min(self.config.batch_size, n_images)
        for first in range(0, n_images - size + 1, size):
            chosen = slice(first, first + size)
            yield torch.from_numpy(order[chosen]), torch.from_numpy(views[chosen])

    def class_features(self) -> Tensor:
        features: Tensor = self.backbone.text_tower(*self.vectors(self.learner.context()))
        return features

    def loss(self, image_features: Tensor, labels: Tensor) -> Tensor:
        class_features = self.class_features()
        logits = self.backbone.logit_scale * image_features @ class_features.T
        loss = F.cross_entropy(logits, labels)
        extra = self.learner.extra_loss(class_features)
        return loss if extra is None else loss + extra

    @torch.no_grad()
    def validate(self, val: FeatureSet | None) -> tuple[float | None, float | None]:
        """Accuracy and cross-entropy of the numbers as they stand."""
        if val is None:
            return None, None
        self.learner.eval()
        images = torch.from_numpy(val.plain).to(self.backbone.device)
        labels = torch.from_numpy(val.labels).to(self.backbone.device)
        logits = self.backbone.logit_scale * images @ self.class_features().T
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return float(accuracy), float(F.cross_entropy(logits, labels))

    @torch.no_grad()
    def idk(self) -> tuple[float, ...]:
        self.learner.eval()
        return information_density(self.learner.context())


def check_names(backbone: Backbone, class_names: Sequence[str], config: TrainConfig) -> list[str]:
    """Faults of class names that do not fit beside the template or the context; one line each."""
    words = len(template_ids(backbone.tokenizer, config.template))
    n_ctx = config.n_ctx or words or 1
    faults: list[str] = []
    for template in config.templates or (learned_template(config.template, words, n_ctx),):
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
