"""Adapters on image features, as baselines for prompts: linear probe, CLIP-Adapter, Tip-Adapter.

An adapter is fitted on training features; its settings are selected on validation features. The
functions take no test features: they return a classifier for the caller to evaluate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.scoring import unit
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.without_torch.evaluation import Evaluation, evaluate
from prompt_serve.types import FloatArray

Logits = Callable[[FloatArray], FloatArray]  # (N, E) of unit length -> (N, C)

# Factors of half the squared norm, added to the mean cross-entropy.
WEIGHT_DECAYS = tuple(float(x) for x in np.logspace(-1, -7, 13))
RESIDUAL_RATIOS = (0.2, 0.4, 0.6, 0.8)
CACHE_WEIGHTS = tuple(float(x) for x in np.logspace(-1, 2, 16))  # alpha of Tip-Adapter
SHARPNESSES = tuple(float(x) for x in np.logspace(-0.5, 2, 16))  # beta
BOTTLENECK = 4  # E / 4 hidden numbers
ADAPTER_EPOCHS, CACHE_EPOCHS = 100, 20
BATCH, ADAM_RATE = 32, 1e-3


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A fitted classifier on image features."""

    name: str
    logits: Logits
    learned_numbers: int
    settings: Mapping[str, float] = field(default_factory=dict)  # selected on validation images


def evaluate_adapter(adapter: Adapter, images: FeatureSet) -> Evaluation:
    """Evaluate an adapter on images without augmentation."""
    return evaluate(adapter.logits(images.plain), images.labels)


def linear_probe(
    train: FeatureSet, val: FeatureSet, n_classes: int, *, decays: Sequence[float] = WEIGHT_DECAYS
) -> Adapter:
    """Fit logistic regression on all views, with the L2 penalty that validates best (CLIP, A.3)."""
    features = torch.from_numpy(train.features.reshape(-1, train.features.shape[-1]))
    labels = torch.from_numpy(np.repeat(train.labels, train.features.shape[1]))
    weights = torch.zeros(n_classes, features.shape[1] + 1)
    adapters = []
    for decay in decays:  # strongest first; each starts from the previous solution
        weights = logistic_regression(features, labels, weights, decay)
        adapters.append(
            Adapter(
                name="linear probe",
                logits=_linear(weights.numpy()),
                learned_numbers=weights.numel(),
                settings={"weight_decay": decay},
            )
        )
    return _best(adapters, val)


def logistic_regression(
    features: Tensor, labels: Tensor, initial: Tensor, weight_decay: float
) -> Tensor:
    """Minimize mean cross-entropy + weight_decay / 2 ||W||^2 by L-BFGS in float64.

    Args:
        features: (N, E).
        labels: (N,).
        initial: (C, E + 1) starting point; the last column is the bias, which is not penalized.
        weight_decay: positive, so that the minimum is unique.

    Returns:
        (C, E + 1) weights and bias.
    """
    wide, parameter = features.double(), initial.double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=500, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = wide @ parameter[:, :-1].T + parameter[:, -1]
        loss = F.cross_entropy(logits, labels)
        loss = loss + weight_decay / 2 * parameter[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return parameter.detach().float()


def clip_adapter(
    train: FeatureSet,
    val: FeatureSet,
    class_features: FloatArray,
    logit_scale: float,
    *,
    seed: int = 1,
    ratios: Sequence[float] = RESIDUAL_RATIOS,
    epochs: int = ADAPTER_EPOCHS,
) -> Adapter:
    """Replace f by ``a ReLU(f W_1) W_2 + (1 - a) f`` (CLIP-Adapter, arXiv 2110.04544, eq. 4-6).

    The ratio a is selected on validation images.
    """
    e = train.features.shape[-1]
    hidden = max(1, e // BOTTLENECK)
    classes = torch.from_numpy(class_features)

    def adapter(ratio: float) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        w_1 = torch.randn(e, hidden, generator=generator) / e**0.5
        w_2 = torch.randn(hidden, e, generator=generator) / hidden**0.5
        parameters = [w_1.requires_grad_(), w_2.requires_grad_()]

        def scores(features: Tensor) -> Tensor:
            mixed = ratio * F.relu(features @ w_1) @ w_2 + (1 - ratio) * features
            return logit_scale * F.normalize(mixed, dim=-1) @ classes.T

        _learn(parameters, scores, train, generator, epochs)
        return Adapter(
            name="CLIP-Adapter",
            logits=_numpy(scores),
            learned_numbers=2 * e * hidden,
            settings={"alpha": ratio},
        )

    return _best([adapter(ratio) for ratio in ratios], val)


def tip_adapter(
    train: FeatureSet, val: FeatureSet, class_features: FloatArray, logit_scale: float
) -> Adapter:
    """Add a cache of training images to zero-shot logits, without training (Tip-Adapter,
    arXiv 2111.03930, section 3.1). Alpha and beta of ``cache_logits`` are selected on validation
    images.
    """
    keys, values = build_cache(train, len(class_features))
    return _best(_tip_adapters("Tip-Adapter", keys, values, class_features, logit_scale), val)


def tip_adapter_f(
    train: FeatureSet,
    val: FeatureSet,
    class_features: FloatArray,
    logit_scale: float,
    *,
    seed: int = 1,
    epochs: int = CACHE_EPOCHS,
) -> Adapter:
    """Fine-tune the keys of Tip-Adapter's cache (section 3.2)."""
    start = tip_adapter(train, val, class_features, logit_scale)
    alpha, beta = start.settings["alpha"], start.settings["beta"]
    first, values = build_cache(train, len(class_features))
    keys = torch.from_numpy(first).clone().requires_grad_()
    labels, classes = torch.from_numpy(values), torch.from_numpy(class_features)

    def scores(features: Tensor) -> Tensor:
        affinity = torch.exp(-beta * (1 - features @ keys.T))
        return alpha * affinity @ labels + logit_scale * features @ classes.T

    _learn([keys], scores, train, torch.Generator().manual_seed(seed), epochs)
    learned = keys.detach().numpy()
    adapters = _tip_adapters("Tip-Adapter-F", learned, values, class_features, logit_scale)
    return _best(adapters, val)


def build_cache(train: FeatureSet, n_classes: int) -> tuple[FloatArray, FloatArray]:
    """Return keys (N, E), the normalized mean of each image's views, and one-hot values (N, C)."""
    values = np.eye(n_classes, dtype=np.float32)[train.labels]
    return unit(train.features.mean(axis=1)), values


def cache_logits(
    features: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    class_features: FloatArray,
    logit_scale: float,
    *,
    alpha: float,
    beta: float,
) -> FloatArray:
    """Return ``alpha exp(-beta (1 - f K^T)) L + scale f W^T`` (Tip-Adapter, eq. 5, 6): (N, C)."""
    affinity = np.exp(-np.float32(beta) * (1 - features @ keys.T))  # (N, cached images)
    scores = np.float32(alpha) * affinity @ values
    return np.asarray(scores + logit_scale * features @ class_features.T, dtype=np.float32)


def _tip_adapters(
    name: str,
    keys: FloatArray,
    values: FloatArray,
    class_features: FloatArray,
    logit_scale: float,
) -> Iterable[Adapter]:
    def logits(alpha: float, beta: float) -> Logits:
        return lambda features: cache_logits(
            features, keys, values, class_features, logit_scale, alpha=alpha, beta=beta
        )

    return (
        Adapter(
            name=name,
            logits=logits(alpha, beta),
            learned_numbers=keys.size,
            settings={"alpha": alpha, "beta": beta},
        )
        for alpha in CACHE_WEIGHTS
        for beta in SHARPNESSES
    )


def _best(adapters: Iterable[Adapter], val: FeatureSet) -> Adapter:
    """Return the adapter with the best validation accuracy, ties broken by cross-entropy."""
    labels = torch.from_numpy(val.labels)

    def selection_key(adapter: Adapter) -> tuple[float, float]:
        logits = torch.from_numpy(adapter.logits(val.plain))
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return -accuracy, float(F.cross_entropy(logits, labels))

    return min(adapters, key=selection_key)


def _learn(
    parameters: list[Tensor],
    scores: Callable[[Tensor], Tensor],
    train: FeatureSet,
    generator: torch.Generator,
    epochs: int,
) -> None:
    """Train with AdamW and a cosine schedule; each step samples one of the K views per image."""
    features, labels = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    n, k, _ = features.shape
    steps = epochs * -(-n // BATCH)
    optimizer = torch.optim.AdamW(parameters, lr=ADAM_RATE, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(n, generator=generator), BATCH):
            views = torch.randint(k, chosen.shape, generator=generator)
            loss = F.cross_entropy(scores(features[chosen, views]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()


def _linear(weights: FloatArray) -> Logits:
    return lambda features: features @ weights[:, :-1].T + weights[:, -1]


def _numpy(scores: Callable[[Tensor], Tensor]) -> Logits:
    @torch.no_grad()
    def logits(features: FloatArray) -> FloatArray:
        return cast(FloatArray, scores(torch.from_numpy(features)).numpy())

    return logits
