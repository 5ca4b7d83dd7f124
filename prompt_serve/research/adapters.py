"""Classifiers on image features, to compare prompts with: a linear probe, CLIP-Adapter and
Tip-Adapter. They are measured and never stored.

A head sees training features, and validation features by which its settings are chosen. Test
features cannot reach it: what comes back is a function, to be evaluated by others.
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
from prompt_serve.training.evaluate import Evaluation, evaluate
from prompt_serve.types import FloatArray

Logits = Callable[[FloatArray], FloatArray]  # (N, E) of unit length -> (N, C)

# Of half the squared norm, beside a mean cross-entropy of features of unit length.
WEIGHT_DECAYS = tuple(float(x) for x in np.logspace(-1, -7, 13))
RESIDUAL_RATIOS = (0.2, 0.4, 0.6, 0.8)
CACHE_WEIGHTS = tuple(float(x) for x in np.logspace(-1, 2, 16))  # alpha of Tip-Adapter
SHARPNESSES = tuple(float(x) for x in np.logspace(-0.5, 2, 16))  # beta
BOTTLENECK = 4  # E / 4 hidden numbers
ADAPTER_EPOCHS, CACHE_EPOCHS = 100, 20
BATCH, ADAM_RATE = 32, 1e-3


@dataclass(frozen=True, kw_only=True)
class Head:
    """A classifier that was fitted."""

    name: str
    logits: Logits
    learned_numbers: int
    settings: Mapping[str, float] = field(default_factory=dict)  # as validation chose them


def evaluate_head(head: Head, images: FeatureSet) -> Evaluation:
    """Accuracy on plain views."""
    return evaluate(head.logits(images.plain), images.labels)


def linear_probe(
    train: FeatureSet, val: FeatureSet, n_classes: int, *, decays: Sequence[float] = WEIGHT_DECAYS
) -> Head:
    """Logistic regression on all views, with the L2 penalty that validates best (CLIP, A.3)."""
    features = torch.from_numpy(train.features.reshape(-1, train.features.shape[-1]))
    labels = torch.from_numpy(np.repeat(train.labels, train.features.shape[1]))
    weights = torch.zeros(n_classes, features.shape[1] + 1)
    heads = []
    for decay in decays:  # the strongest first: each starts where the one before it ended
        weights = logistic_regression(features, labels, weights, decay)
        heads.append(
            Head(
                name="linear probe",
                logits=_linear(weights.numpy()),
                learned_numbers=weights.numel(),
                settings={"weight_decay": decay},
            )
        )
    return _best(heads, val)


def logistic_regression(
    features: Tensor, labels: Tensor, initial: Tensor, weight_decay: float
) -> Tensor:
    """The minimum of mean cross-entropy + weight_decay / 2 ||W||^2, by L-BFGS in float64.

    Args:
        features: (N, E).
        labels: (N,).
        initial: (C, E + 1), where to start; the last column is the bias, which is not penalized.
        weight_decay: above 0, so that there is one minimum.
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
) -> Head:
    """``a ReLU(f W_1) W_2 + (1 - a) f`` in place of f (CLIP-Adapter, arXiv 2110.04544, eq. 4-6).

    The ratio a is the one that validates best.
    """
    e = train.features.shape[-1]
    hidden = max(1, e // BOTTLENECK)
    classes = torch.from_numpy(class_features)

    def head(ratio: float) -> Head:
        generator = torch.Generator().manual_seed(seed)
        w_1 = torch.randn(e, hidden, generator=generator) / e**0.5
        w_2 = torch.randn(hidden, e, generator=generator) / hidden**0.5
        parameters = [w_1.requires_grad_(), w_2.requires_grad_()]

        def scores(features: Tensor) -> Tensor:
            mixed = ratio * F.relu(features @ w_1) @ w_2 + (1 - ratio) * features
            return logit_scale * F.normalize(mixed, dim=-1) @ classes.T

        _learn(parameters, scores, train, generator, epochs)
        return Head(
            name="CLIP-Adapter",
            logits=_numpy(scores),
            learned_numbers=2 * e * hidden,
            settings={"alpha": ratio},
        )

    return _best([head(ratio) for ratio in ratios], val)


def tip_adapter(
    train: FeatureSet, val: FeatureSet, class_features: FloatArray, logit_scale: float
) -> Head:
    """A cache of the training images beside the template, nothing learned (Tip-Adapter,
    arXiv 2111.03930, section 3.1). See ``cache_logits``; its two numbers are chosen by validation,
    never on test images.
    """
    keys, values = cache_of(train, len(class_features))
    return _best(_tip_heads("Tip-Adapter", keys, values, class_features, logit_scale), val)


def tip_adapter_f(
    train: FeatureSet,
    val: FeatureSet,
    class_features: FloatArray,
    logit_scale: float,
    *,
    seed: int = 1,
    epochs: int = CACHE_EPOCHS,
) -> Head:
    """Tip-Adapter with learned keys that start from the cache (section 3.2)."""
    start = tip_adapter(train, val, class_features, logit_scale)
    alpha, beta = start.settings["alpha"], start.settings["beta"]
    first, values = cache_of(train, len(class_features))
    keys = torch.from_numpy(first).clone().requires_grad_()
    labels, classes = torch.from_numpy(values), torch.from_numpy(class_features)

    def scores(features: Tensor) -> Tensor:
        affinity = torch.exp(-beta * (1 - features @ keys.T))
        return alpha * affinity @ labels + logit_scale * features @ classes.T

    _learn([keys], scores, train, torch.Generator().manual_seed(seed), epochs)
    learned = keys.detach().numpy()
    heads = _tip_heads("Tip-Adapter-F", learned, values, class_features, logit_scale)
    return _best(heads, val)


def cache_of(train: FeatureSet, n_classes: int) -> tuple[FloatArray, FloatArray]:
    """Keys (N, E), the mean of each image's views at unit length, and one-hot values (N, C)."""
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
    """``alpha exp(-beta (1 - f K^T)) L + scale f W^T`` (Tip-Adapter, eq. 5 and 6): (N, C)."""
    affinity = np.exp(-np.float32(beta) * (1 - features @ keys.T))
    scores = np.float32(alpha) * affinity @ values
    return np.asarray(scores + logit_scale * features @ class_features.T, dtype=np.float32)


def _tip_heads(
    name: str,
    keys: FloatArray,
    values: FloatArray,
    class_features: FloatArray,
    logit_scale: float,
) -> Iterable[Head]:
    def logits(alpha: float, beta: float) -> Logits:
        return lambda features: cache_logits(
            features, keys, values, class_features, logit_scale, alpha=alpha, beta=beta
        )

    return (
        Head(
            name=name,
            logits=logits(alpha, beta),
            learned_numbers=keys.size,
            settings={"alpha": alpha, "beta": beta},
        )
        for alpha in CACHE_WEIGHTS
        for beta in SHARPNESSES
    )


def _best(heads: Iterable[Head], val: FeatureSet) -> Head:
    """The head of the best validation accuracy; of those, the one of the least cross-entropy."""
    labels = torch.from_numpy(val.labels)

    def selection_key(head: Head) -> tuple[float, float]:
        logits = torch.from_numpy(head.logits(val.plain))
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return -accuracy, float(F.cross_entropy(logits, labels))

    return min(heads, key=selection_key)


def _learn(
    parameters: list[Tensor],
    scores: Callable[[Tensor], Tensor],
    train: FeatureSet,
    generator: torch.Generator,
    epochs: int,
) -> None:
    """AdamW with a cosine; a step draws one of the K views of each of its images."""
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
