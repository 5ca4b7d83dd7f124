"""ADAPT: keys and values in every block of both towers, of which most are pruned while learning.

Equation 7 of the paper: ``Q = f_q(x)``, ``K = f_k([P, x])``, ``V = f_v([P, x])``. The rows P join
the input of a block's keys and values only: they ask nothing, the sequence stays as long as it was,
and the next block knows nothing of them. The words of the text branch are those of the template,
and nothing is learned of them.

Every block of either tower starts with 16 rows from N(0, init_std^2): 12 x 16 x (768 + 512) =
245,760 numbers on ViT-B/16. From a share of the run on (``prune_after``), the rows that are worth
least are removed, a few at a time, until T are left in both towers together; blocks end with
different numbers of rows, some with none (Algorithm 1).

The paper leaves open, and this file decides:

* A pruned row is *removed*. A row times zero, as the paper's masks read, would still go through the
  layer norm, come out as its bias, and be attended to.
* The worth of a row is the sum over its D numbers of ``|gradient x number|`` (equation 6, snip), or
  the Euclidean norm of the gradient or of the row. It is added up over the steps since the last
  pruning, each time before the update, and one ranking holds all rows of both towers.
* Every 80 steps, as printed, the target is never reached on small data: EuroSAT has 40 steps an
  epoch and would need 160 epochs from 384 rows to 64. So the interval shrinks until the target is
  reached within a share of the run (``prune_within``); see ``Schedule``.

Trap: because of the layer norm the length of a row does not matter to the features, only its
direction, so ``l2`` ranks rows by where they started and how far they drifted.

With ``bits`` the rows of a tower share one codebook, which looks at the kept rows alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.encodings import PrunedKeyValues
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor
from prompt_serve.training.config import AUTO, PruneScore, TrainConfig
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    Method,
    PromptLearner,
    StepInfo,
    to_float16,
)
from prompt_serve.training.methods.parameters import CODEBOOK_SETTINGS
from prompt_serve.training.quantization.codebook import AdaptiveCodebook, quantized, saves_bytes


class Adapt(PromptLearner):
    """``tokens_per_block`` x blocks x D numbers of each tower at first, ``tokens`` rows at last."""

    def __init__(self, start: LearnerInputs) -> None:
        super().__init__()
        image_width = start.prompted_image_width()
        self._config = start.config
        self._target = _target(start)
        self.text = TowerRows(start.text_layers, start.width, start)
        self.image = TowerRows(start.image_layers, image_width, start)

    def contexts(self) -> Contexts:
        return Contexts(
            text=PromptVectors(keys_values=self.text.by_block()),
            image=PromptVectors(keys_values=self.image.by_block()),
        )

    def encodings(self) -> Encodings:
        return Encodings(text=self.text.encoding(), image=self.image.encoding())

    def before_update(self, moment: StepInfo) -> None:
        if moment.step >= self._schedule(moment).first and self.tokens > self._target:
            self.text.accumulate_scores(self._config.prune_score)
            self.image.accumulate_scores(self._config.prune_score)

    def after_update(self, moment: StepInfo) -> None:
        surplus = self.tokens - self._target
        schedule = self._schedule(moment)
        if surplus > 0 and schedule.is_due(moment.step):
            prune((self.text, self.image), min(schedule.at_a_time, surplus))
        self.text.after_update(moment)
        self.image.after_update(moment)

    def log_metrics(self) -> dict[str, Any]:
        books = [rows.codebook for rows in (self.text, self.image) if rows.codebook is not None]
        counted = {"reclusterings": sum(int(book.reclusterings) for book in books)} if books else {}
        return {
            "tokens": self.tokens,
            "text_tokens": self.text.lengths(),
            "image_tokens": self.image.lengths(),
            **counted,
        }

    @property
    def tokens(self) -> int:
        """Rows left in both towers together."""
        return sum(self.text.lengths()) + sum(self.image.lengths())

    def _schedule(self, moment: StepInfo) -> "Schedule":
        surplus = self.text.kept.numel() + self.image.kept.numel() - self._target
        return make_schedule(self._config, steps=moment.steps, surplus=surplus)


class TowerRows(nn.Module):
    """The rows of all blocks of one tower, and which of them are kept.

    Rows that were pruned stay in the parameter, where nothing reads them: neither the momentum nor
    the weight decay that still moves them can matter.

    Args:
        blocks: of the tower.
        width: D.
        start: rows a block, random numbers, bits.
    """

    kept: Tensor  # (blocks, n) bool
    importance: Tensor  # (blocks, n) since the last pruning

    def __init__(self, blocks: int, width: int, start: LearnerInputs) -> None:
        super().__init__()
        config, n = start.config, start.config.tokens_per_block
        initial = start.normal(blocks, n, width)
        self.rows = nn.Parameter(initial)
        self.kept = nn.Buffer(torch.ones(blocks, n, dtype=torch.bool))
        self.importance = nn.Buffer(torch.zeros(blocks, n))
        self._bits = config.bits
        while_learning = config.bits is not None and config.quantization == "qat"
        self.codebook = AdaptiveCodebook(initial, config) if while_learning else None

    def by_block(self) -> tuple[Tensor, ...]:
        """The kept rows (n, D) of each block in this step, in order."""
        rows = self.rows[self.kept]
        if self.codebook is not None and self._is_coded(rows):
            rows = self.codebook(rows)
        return tuple(torch.split(rows, self.lengths()))

    def lengths(self) -> list[int]:
        """How many rows each block has left."""
        counts: list[int] = self.kept.sum(dim=1).tolist()
        return counts

    def encoding(self) -> PrunedKeyValues | None:
        """What the file stores; nothing of a tower that has lost all its rows."""
        if not self.kept.any():
            return None
        lengths = np.asarray(self.lengths(), dtype=np.uint8)
        return PrunedKeyValues(lengths=lengths, rows=self._stored(self.rows[self.kept]))

    def _stored(self, rows: Tensor) -> StoredTensor:
        if self._bits is None or not self._is_coded(rows):
            return to_float16(rows)
        if self.codebook is None:
            return quantized(to_float16(rows), self._bits)
        return self.codebook.coded(rows)

    def _is_coded(self, rows: Tensor) -> bool:
        """Too few rows take fewer bytes without a codebook."""
        return self._bits is not None and saves_bytes(rows.numel(), self._bits)

    def after_update(self, moment: StepInfo) -> None:
        """Let the codebook look at the kept rows."""
        if self.codebook is not None and self.kept.any():
            self.codebook.after_update(self.rows, moment, self.kept)

    @torch.no_grad()
    def accumulate_scores(self, score: PruneScore) -> None:
        """Add the worth that each row has in this step (equation 6)."""
        rows, gradient = self.rows, self.rows.grad
        if score == "l2":
            self.importance += rows.norm(dim=-1)
        elif gradient is not None:  # None: no row of this tower is left
            by_number = gradient * rows
            self.importance += by_number.abs().sum(-1) if score == "snip" else gradient.norm(dim=-1)


def prune(towers: Sequence[TowerRows], count: int) -> None:
    """Remove the ``count`` rows that are worth least over all towers, and set all worths to zero.

    Equal worths: the row of the lower block goes first, then that of the first tower, then the
    first of its block.
    """
    ranking = sorted(row for index, tower in enumerate(towers) for row in _ranked(index, tower))
    for _, block, index, place in ranking[:count]:
        towers[index].kept[block, place] = False
    for tower in towers:
        tower.importance.zero_()


def _ranked(index: int, tower: TowerRows) -> Iterator[tuple[float, int, int, int]]:
    """(worth, block, tower, place) of each kept row."""
    worths: NDArray[np.float32] = tower.importance.cpu().numpy()
    for block, place in np.argwhere(tower.kept.cpu().numpy()).tolist():
        yield float(worths[block, place]), block, index, place


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When rows are pruned, and how many at a time."""

    first: int  # steps before any row is looked at
    interval: int  # steps from there to the first pruning, and between two
    at_a_time: int

    def is_due(self, step: int) -> bool:
        """Whether rows are pruned after the update of ``step`` (from 0)."""
        since = step + 1 - self.first
        return since > 0 and since % self.interval == 0


def make_schedule(config: TrainConfig, *, steps: int, surplus: int) -> Schedule:
    """The schedule that rids a run of ``surplus`` rows in time.

    ``prune_step`` rows go every ``prune_interval`` steps, or more often where the target would not
    be reached within ``prune_within`` of the steps that follow ``prune_after``; where one step
    between two prunings is still too long, more rows go at a time.

    Args:
        config: the four settings.
        steps: of the whole run, 1 or more.
        surplus: rows to be pruned.
    """
    first = min(round(config.prune_after * steps), steps - 1)
    time = max(1, int(config.prune_within * (steps - first)))
    at_a_time = max(config.prune_step, -(-surplus // time))
    prunings = max(1, -(-surplus // at_a_time))
    interval = max(1, min(config.prune_interval, time // prunings))
    return Schedule(first=first, interval=interval, at_a_time=at_a_time)


def tokens_at_start(config: TrainConfig, blocks: int) -> int:
    """Rows that learning starts with in ``blocks`` blocks, those of both towers."""
    return blocks * config.tokens_per_block


def _target(start: LearnerInputs) -> int:
    """T, checked."""
    config, blocks = start.config, start.text_layers + start.image_layers
    most = tokens_at_start(config, blocks)
    if config.n_ctx is not None:
        raise ConfigInvalid(
            "ADAPT keeps the template's words and has no n_ctx; give tokens, the number of rows "
            "that are kept in both towers together."
        )
    if config.tokens == AUTO:
        raise ConfigInvalid(
            "tokens is 'auto', but a single fit chooses nothing. Give a number, or learn with "
            "train_prompt, which tries several."
        )
    if not 1 <= config.tokens <= most:
        raise ConfigInvalid(
            f"tokens is {config.tokens}; wanted 1 to {most}, the rows that {blocks} blocks of "
            f"{config.tokens_per_block} (tokens_per_block) start with. To keep none at all is "
            f"method 'zero-shot'."
        )
    return config.tokens


METHOD = Method(
    name="adapt",
    summary="Keys and values in all blocks of both towers, pruned while learning (ADAPT).",
    paper="ADAPT, TMLR 2026, eq. 7 and Alg. 1",
    learner=Adapt,
    learning_rate=0.0025,  # the paper's
    learning_rates=(0.0025, 0.01, 0.05),
    settings=CODEBOOK_SETTINGS
    | {
        "tokens",
        "tokens_per_block",
        "prune_score",
        "prune_step",
        "prune_interval",
        "prune_after",
        "prune_within",
    },
    prompts_images=lambda config: True,
)
