"""How many rows ADAPT keeps (``tokens = "auto"``): the fewest that validate as well as any number.

A run for each T in 2, 4, ..., 256; among those within one standard error of the best validation
accuracy the smallest T is taken. A few validation images cannot tell such runs apart, and fewer
rows make a smaller file and a quicker image tower. Test images play no part.

The runs are separate: the interval between two prunings depends on T, so that a run to 16 rows is
another one than a run to 64 that goes on.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.loop import Fitted
from prompt_serve.training.methods.adapt import AdaptSettings, tokens_at_start
from prompt_serve.training.settings import AUTO

TOKENS = (2, 4, 8, 16, 32, 64, 128, 256)

Learn = Callable[[TrainConfig, Path | None], Fitted]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenCandidate:
    """A run that kept T rows."""

    tokens: int
    fitted: Fitted

    @property
    def accuracy(self) -> float:
        """On the validation images, after the last epoch; 0..1."""
        return self.fitted.history[-1].val_accuracy or 0.0


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """The run that was taken, and what it was taken from."""

    chosen: TokenCandidate
    candidates: tuple[TokenCandidate, ...]

    @property
    def note(self) -> str:
        """For the user."""
        tried = ", ".join(f"{c.tokens}: {c.accuracy:.1%}" for c in self.candidates)
        return (
            f"Kept {self.chosen.tokens} tokens, the fewest within one standard error of the best "
            f"validation accuracy ({tried})."
        )


def chooses_tokens(config: TrainConfig) -> bool:
    """Return True if the number of rows is to be chosen by validation."""
    return isinstance(config.settings, AdaptSettings) and config.settings.tokens == AUTO


def choose_tokens(
    config: TrainConfig,
    backbone: Backbone,
    val: ImageData | None,
    learn: Learn,
    checkpoint: Path | None = None,
) -> TokenChoice:
    """Learn with every T and take the smallest that will do.

    Args:
        config: its ``tokens`` is not looked at.
        backbone: whose blocks say how many rows there are to start with.
        val: validation images.
        learn: one run, reporting on ``val``; told where its checkpoint is.
        checkpoint: of the whole; each run has its own beside it.

    Raises:
        ConfigInvalid: there are no validation images, or fewer rows than the smallest T.
        BackboneUnsupported: the image tower cannot be prompted.
    """
    if val is None:
        raise ConfigInvalid(
            "tokens 'auto' chooses by validation images, and there are none. "
            "Give a number, such as 32, or more images."
        )
    candidates = []
    for tokens in token_counts(config, backbone):
        own = checkpoint and checkpoint.with_name(f"{checkpoint.name}.tokens-{tokens}")
        fitted = learn(config.replace(tokens=tokens), own)
        candidates.append(TokenCandidate(tokens=tokens, fitted=fitted))
        _log.info("%d tokens: validation accuracy %.4f", tokens, candidates[-1].accuracy)
    chosen = fewest_within_one_standard_error(candidates, len(val))
    return TokenChoice(chosen=chosen, candidates=tuple(candidates))


def token_counts(config: TrainConfig, backbone: Backbone) -> tuple[int, ...]:
    """Every T that leaves something to prune.

    Raises:
        ConfigInvalid: there is none.
    """
    blocks = backbone.text_tower.layers + backbone.image_tower.layers
    if not isinstance(config.settings, AdaptSettings):
        raise TypeError(f"Method {config.method!r} has no tokens to choose.")
    start = tokens_at_start(config.settings, blocks)
    counts = tuple(tokens for tokens in TOKENS if tokens < start)
    if counts:
        return counts
    raise ConfigInvalid(
        f"tokens 'auto' tries 2 and more, but learning starts with {start} in {blocks} blocks. "
        f"Raise tokens_per_block, or give a number."
    )


def fewest_within_one_standard_error(
    candidates: Sequence[TokenCandidate], images: int
) -> TokenCandidate:
    """The smallest T whose accuracy on N images is at least best - sqrt(best (1 - best) / N)."""
    best = max(candidate.accuracy for candidate in candidates)
    least = best - math.sqrt(best * (1 - best) / images)
    good = [candidate for candidate in candidates if candidate.accuracy >= least]
    return min(good, key=lambda candidate: candidate.tokens)
