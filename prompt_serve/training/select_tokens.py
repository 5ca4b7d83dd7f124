"""Number of rows that ADAPT keeps (``tokens = "auto"``), chosen by validation images.

One run for each T in 2, 4, ..., 256; of those within one standard error of the best validation
accuracy, the smallest T is taken. A few validation images cannot tell such runs apart, and fewer
rows make a smaller file and a faster image tower. Test images are not used.

The runs are separate: the interval between two prunings depends on T, so a run that ends with 16
rows is not the continuation of one that ends with 64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.loop import Fitted
from prompt_serve.training.methods.adapt import AdaptSettings, tokens_at_start
from prompt_serve.training.settings import AUTO

TOKENS = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class TokenCandidate:
    """A run that kept T rows."""

    tokens: int
    fitted: Fitted

    @property
    def accuracy(self) -> float:
        """On the validation images, after the last epoch; 0..1."""
        return self.fitted.history[-1].val_accuracy or 0.0


def selects_tokens(config: TrainConfig) -> bool:
    """Return True if the number of tokens is to be chosen by validation."""
    return isinstance(config.settings, AdaptSettings) and config.settings.tokens == AUTO


def tokens_of(config: TrainConfig) -> int:
    """Return the number of tokens of a configuration that does not select it."""
    if not isinstance(config.settings, AdaptSettings) or config.settings.tokens == AUTO:
        raise TypeError(f"The configuration of method {config.method!r} names no number of tokens.")
    return config.settings.tokens


def with_tokens(config: TrainConfig, tokens: int) -> TrainConfig:
    """Return the configuration with a number of tokens."""
    return config.replace(tokens=tokens)


def token_configs(
    config: TrainConfig, backbone: Backbone, *, has_val: bool
) -> tuple[TrainConfig, ...]:
    """Return a configuration for every number of tokens to try.

    Raises:
        ConfigInvalid: there are no validation images, or fewer rows than the smallest T.
        BackboneUnsupported: the image tower cannot be prompted.
    """
    if not has_val:
        raise ConfigInvalid(
            "tokens 'auto' chooses by validation images, and there are none. "
            "Give a number, such as 32, or more images."
        )
    return tuple(with_tokens(config, tokens) for tokens in token_counts(config, backbone))


def token_counts(config: TrainConfig, backbone: Backbone) -> tuple[int, ...]:
    """Return every T that leaves something to prune.

    Raises:
        ConfigInvalid: no T is small enough.
        BackboneUnsupported: the image tower cannot be prompted.
    """
    blocks = backbone.text_tower.layers + backbone.image_tower.layers
    if not isinstance(config.settings, AdaptSettings):
        raise TypeError(f"Method {config.method!r} has no tokens to choose.")
    start = tokens_at_start(config.settings, blocks)
    counts = tuple(tokens for tokens in TOKENS if tokens < start)
    if counts:
        return counts
    raise ConfigInvalid(
        f"tokens 'auto' tries 2 and more, but learning starts with {start} in "
        f"{counted(blocks, 'block')}. Raise tokens_per_block, or give a number."
    )


def fewest_within_one_standard_error(
    candidates: Sequence[TokenCandidate], images: int
) -> TokenCandidate:
    """Return the smallest T whose accuracy on N images is >= best - sqrt(best (1 - best) / N)."""
    best = max(candidate.accuracy for candidate in candidates)
    least = best - math.sqrt(best * (1 - best) / images)
    good = [candidate for candidate in candidates if candidate.accuracy >= least]
    return min(good, key=lambda candidate: candidate.tokens)


def selection_note(chosen: TokenCandidate, candidates: Sequence[TokenCandidate]) -> str:
    """Return a sentence for the user: the number of tokens kept, and the accuracy of each tried."""
    tried = ", ".join(f"{c.tokens}: {c.accuracy:.1%}" for c in candidates)
    return (
        f"Kept {chosen.tokens} tokens, the fewest within one standard error of the best "
        f"validation accuracy ({tried})."
    )
