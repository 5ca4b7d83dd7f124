"""ADAPT: keys and values in every block of both towers, most of them pruned in training.

Equation 7 of the paper: ``Q = f_q(x)``, ``K = f_k([P, x])``, ``V = f_v([P, x])``. The rows P join
the input of a block's keys and values only: they make no queries, the sequence keeps its length,
and the next block does not see them. The words of the text branch are those of the template;
nothing is learned in their place.

Every block of either tower starts with 16 rows from N(0, init_std^2): 12 x 16 x (768 + 512) =
245,760 numbers on ViT-B/16. From a share of the run on (``prune_after``), the rows of least
importance are removed, a few at a time, until T are left in both towers together; blocks end with
different numbers of rows, some with none (Algorithm 1).

The paper leaves open, and this file decides:

* A pruned row is *removed*. A row times zero, as the paper's masks read, would still go through the
  layer norm, come out as its bias, and be attended to.
* The importance of a row is the sum over its D numbers of ``|gradient x number|`` (equation 6,
  snip), or the Euclidean norm of the gradient or of the row. It is accumulated over the steps since
  the last pruning, each time before the update, and one ranking holds all rows of both towers.
* Every 80 steps, as printed, the target is never reached on small data: EuroSAT has 40 steps per
  epoch and would need 160 epochs from 384 rows to 64. So the interval shrinks until the target is
  reached within a share of the run (``prune_within``); see ``Schedule``.

Trap: because of the layer norm the length of a row does not matter to the features, only its
direction, so ``l2`` ranks rows by where they started and how far they drifted.

With ``bits`` the rows of a tower share one codebook, made from the kept rows alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.encodings import PrunedKeyValues
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    Method,
    PromptLearner,
    StepInfo,
    to_float16,
)
from prompt_serve.training.methods.parameters import StepScales, VectorModule
from prompt_serve.training.quantization.codebook import CodebookSettings, quantized, saves_bytes
from prompt_serve.training.settings import AUTO, choice, number, whole

PruneScore = Literal["snip", "gradient", "l2"]


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(CodebookSettings):
    """Settings of ADAPT."""

    tokens: int | Literal["auto"] = whole(
        32, 0, 1_000_000,
        "Rows kept in both towers together (T_target), or auto to choose by validation.",
        also=(AUTO,),
    )  # fmt: skip
    tokens_per_block: int = whole(16, 1, 255, "Rows per block before pruning.")
    prune_score: PruneScore = choice(
        "snip", get_args(PruneScore),
        "Importance of a row: gradient times value (snip), norm of the gradient, or norm (l2).",
    )  # fmt: skip
    prune_step: int = whole(4, 1, 10_000, "Rows removed at each pruning.")
    prune_interval: int = whole(
        80, 1, 1_000_000,
        "Training steps between two prunings; fewer where the target would not be reached.",
    )  # fmt: skip
    prune_after: float = number(0.05, 0.0, 0.9, "Share of the run before the first pruning.")
    prune_within: float = number(
        0.5, 0.01, 1.0, "Share of the rest of the run in which the target is reached."
    )


class Adapt(PromptLearner):
    """``tokens_per_block`` x blocks x D numbers of each tower at first, ``tokens`` rows at last."""

    def __init__(self, inputs: LearnerInputs, settings: AdaptSettings) -> None:
        super().__init__()
        image_width = inputs.prompted_image_width()
        self._settings = settings
        self._target = _target(inputs, settings)
        self.text = TowerRows(inputs.text_layers, inputs.width, inputs, settings)
        self.image = TowerRows(inputs.image_layers, image_width, inputs, settings)

    def contexts(self) -> Contexts:
        return Contexts(
            text=PromptVectors(keys_values=self.text()),
            image=PromptVectors(keys_values=self.image()),
        )

    def encodings(self) -> Encodings:
        return Encodings(text=self.text.encoding(), image=self.image.encoding())

    def before_update(self, step_info: StepInfo) -> None:
        if step_info.step >= self._schedule(step_info).first and self.tokens > self._target:
            self.text.accumulate_scores(self._settings.prune_score)
            self.image.accumulate_scores(self._settings.prune_score)

    def after_update(self, step_info: StepInfo) -> None:
        surplus = self.tokens - self._target
        schedule = self._schedule(step_info)
        if surplus > 0 and schedule.is_due(step_info.step):
            prune((self.text, self.image), min(schedule.at_a_time, surplus))
        self.text.update_codebook(step_info)
        self.image.update_codebook(step_info)

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

    def _schedule(self, step_info: StepInfo) -> "Schedule":
        surplus = self.text.kept.numel() + self.image.kept.numel() - self._target
        return make_schedule(self._settings, steps=step_info.steps, surplus=surplus)


class TowerRows(VectorModule):
    """The rows of all blocks of one tower, with a mask of those that are kept.

    Pruned rows stay in the parameter, where nothing reads them: neither the momentum nor the weight
    decay that still moves them can matter.

    Args:
        blocks: number of blocks of the tower.
        width: D.
        inputs: the random numbers.
        settings: rows per block, codebook.
    """

    kept: Tensor  # (blocks, n) bool
    importance: Tensor  # (blocks, n) since the last pruning

    def __init__(
        self, blocks: int, width: int, inputs: LearnerInputs, settings: AdaptSettings
    ) -> None:
        super().__init__()
        n = settings.tokens_per_block
        initial = inputs.normal(blocks, n, width)
        self.rows = nn.Parameter(initial)  # (blocks, n, D)
        self.kept = nn.Buffer(torch.ones(blocks, n, dtype=torch.bool))
        self.importance = nn.Buffer(torch.zeros(blocks, n))
        self._bits = settings.bits
        self.codebook = settings.new_codebook(initial)

    def forward(self) -> tuple[Tensor, ...]:
        """Return the kept rows (n, D) of each block in this step, in order."""
        rows = self.rows[self.kept]  # (kept, D)
        if self.codebook is not None and self._is_coded(rows):
            rows = self.codebook(rows)
        return tuple(torch.split(rows, self.lengths()))

    def step_scales(self, scale: float, inputs: tuple[Tensor, ...]) -> StepScales:
        return [(self.rows, scale)]

    def lengths(self) -> list[int]:
        """Return the number of rows that each block has left."""
        counts: list[int] = self.kept.sum(dim=1).tolist()
        return counts

    def encoding(self) -> PrunedKeyValues | None:
        """Return the rows as the prompt file stores them; None if no row is left."""
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
        """Return False if there are so few rows that they take fewer bytes without a codebook."""
        return self._bits is not None and saves_bytes(rows.numel(), self._bits)

    def update_codebook(self, step_info: StepInfo) -> None:
        """Let the codebook check the kept rows."""
        if self.codebook is not None and self.kept.any():
            self.codebook.after_update(self.rows, step_info.step, self.kept)

    @torch.no_grad()
    def accumulate_scores(self, score: PruneScore) -> None:
        """Add the importance of each row in this step (equation 6)."""
        rows, gradient = self.rows, self.rows.grad
        if score == "l2":
            self.importance += rows.norm(dim=-1)
        elif gradient is not None:  # None: no row of this tower is left
            by_number = gradient * rows
            self.importance += by_number.abs().sum(-1) if score == "snip" else gradient.norm(dim=-1)


def prune(towers: Sequence[TowerRows], count: int) -> None:
    """Remove the ``count`` rows of least importance over all towers; reset all importances.

    Ties: the row of the lower block goes first, then that of the first tower, then the first of its
    block.
    """
    ranking = sorted(row for index, tower in enumerate(towers) for row in _ranked(index, tower))
    for _, block, index, place in ranking[:count]:
        towers[index].kept[block, place] = False
    for tower in towers:
        tower.importance.zero_()


def _ranked(index: int, tower: TowerRows) -> Iterator[tuple[float, int, int, int]]:
    """Yield (importance, block, tower, place) of each kept row."""
    importance: NDArray[np.float32] = tower.importance.cpu().numpy()
    for block, place in np.argwhere(tower.kept.cpu().numpy()).tolist():
        yield float(importance[block, place]), block, index, place


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps at which rows are pruned, and how many at a time."""

    first: int  # steps before importance is accumulated
    interval: int  # steps from there to the first pruning, and between two
    at_a_time: int

    def is_due(self, step: int) -> bool:
        """Return True if rows are pruned after the update of ``step`` (from 0)."""
        since = step + 1 - self.first
        return since > 0 and since % self.interval == 0


def make_schedule(settings: AdaptSettings, *, steps: int, surplus: int) -> Schedule:
    """Return the schedule that removes ``surplus`` rows in time.

    ``prune_step`` rows go every ``prune_interval`` steps, or more often if the target would not be
    reached within ``prune_within`` of the steps that follow ``prune_after``; if one step between
    two prunings is still too long, more rows go at a time.

    Args:
        settings: the four above.
        steps: of the whole run, 1 or more.
        surplus: rows to be pruned.
    """
    first = min(round(settings.prune_after * steps), steps - 1)
    time = max(1, int(settings.prune_within * (steps - first)))
    at_a_time = max(settings.prune_step, -(-surplus // time))
    prunings = max(1, -(-surplus // at_a_time))
    interval = max(1, min(settings.prune_interval, time // prunings))
    return Schedule(first=first, interval=interval, at_a_time=at_a_time)


def tokens_at_start(settings: AdaptSettings, blocks: int) -> int:
    """Return the number of rows before pruning in ``blocks`` blocks, those of both towers."""
    return blocks * settings.tokens_per_block


def _target(inputs: LearnerInputs, settings: AdaptSettings) -> int:
    """Return T, checked."""
    blocks = inputs.text_layers + inputs.image_layers
    most = tokens_at_start(settings, blocks)
    if inputs.given_n_ctx is not None:
        raise ConfigInvalid(
            "ADAPT keeps the template's words and has no n_ctx; give tokens, the number of rows "
            "that are kept in both towers together."
        )
    if settings.tokens == AUTO:
        raise ConfigInvalid(
            "tokens is 'auto', but a single fit chooses nothing. Give a number, or learn with "
            "train_prompt, which tries several."
        )
    if not 1 <= settings.tokens <= most:
        raise ConfigInvalid(
            f"tokens is {settings.tokens}; expected 1 to {most}, the rows that {blocks} blocks of "
            f"{settings.tokens_per_block} (tokens_per_block) start with. To keep none at all is "
            f"method 'zero-shot'."
        )
    return settings.tokens


METHOD = Method(
    name="adapt",
    summary="Keys and values in all blocks of both towers, pruned while learning (ADAPT).",
    paper="ADAPT, TMLR 2026, eq. 7 and Alg. 1",
    settings=AdaptSettings,
    learner=Adapt,
    learning_rate=0.0025,  # the paper's
    learning_rates=(0.0025, 0.01, 0.05),
    prompts_images=lambda settings: True,
)
