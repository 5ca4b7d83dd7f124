"""Stored runs of a protocol: one line of results each, and files that are read on demand.

Only the line is required. With ``results.jsonl`` alone, a report has the tables, and each section
without data names the files it needs.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prompt_serve.errors import ResultsInvalid
from prompt_serve.prompts.prompt_file import Prompt, read_prompt_file
from prompt_serve.research.protocols.results import (
    FILE_NAME,
    Result,
    StoredPredictions,
    read_results,
)
from prompt_serve.research.protocols.summary import (
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    comparison_of,
)
from prompt_serve.training.without_torch.outcome import EpochRecord

PROMPT, HISTORY = "prompt.safetensors", "history.jsonl"


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One learned prompt: its result, and the folder with its other files."""

    result: Result
    folder: Path  # may not exist

    @cached_property
    def history(self) -> tuple[EpochRecord, ...]:
        """Log of all epochs; empty if none was stored or nothing was trained.

        Raises:
            ResultsInvalid: a line is not an epoch record.
        """
        file = self.folder / HISTORY
        if not file.is_file():
            return ()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            return tuple(EpochRecord(**json.loads(line)) for line in lines if line)
        except (OSError, ValueError, TypeError) as error:
            raise ResultsInvalid(f"{file} is not a log of epochs: {error!r}.") from error

    @property
    def prompt(self) -> Prompt | None:
        """Learned prompt; None if no file was stored.

        Raises:
            PromptFileInvalid: the file is damaged.
        """
        file = self.folder / PROMPT
        return read_prompt_file(file) if file.is_file() else None

    @property
    def predicted_test_sets(self) -> tuple[str, ...]:
        """Test sets with stored predictions, in the order of the result."""
        names = (name for name in self.result.accuracy if Path(name).name == name)
        return tuple(name for name in names if self._predictions_file(name).is_file())

    def predictions(self, test_set: str) -> StoredPredictions:
        """Read the predictions on one of ``predicted_test_sets``.

        Raises:
            ResultsInvalid: the file does not hold predictions.
        """
        file = self._predictions_file(test_set)
        try:
            predictions = StoredPredictions.load(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ResultsInvalid(f"{file} holds no predictions: {error!r}.") from error
        if fault := _fault(predictions):
            raise ResultsInvalid(f"{file} is inconsistent: {fault}.")
        return predictions

    def _predictions_file(self, test_set: str) -> Path:
        return self.folder / f"predictions-{test_set}.npz"


def read_runs(paths: Iterable[Path]) -> tuple[StoredRun, ...]:
    """Read all runs of run folders or results files; the last line of a run counts.

    Raises:
        ResultsInvalid: a file is missing or invalid, or there is no result at all.
    """
    files = list(dict.fromkeys(_file(path) for path in paths))
    runs: dict[tuple[tuple[str, str, str], str], StoredRun] = {}
    for file in files:
        for result in read_results(file):
            folder = file.parent / "runs" / result.run_id
            runs[comparison_of(result), result.run_id] = StoredRun(result=result, folder=folder)
    if not runs:
        raise ResultsInvalid(
            f"{', '.join(map(str, files))}: no results. A run that was interrupted early may not "
            f"have written any."
        )
    return tuple(runs.values())


def by_comparison(runs: Iterable[StoredRun]) -> dict[tuple[str, str, str], tuple[StoredRun, ...]]:
    """Group runs by protocol, suite and backbone, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(comparison_of(run.result), []).append(run)
    return {key: tuple(group) for key, group in groups.items()}


def without_repeated_prompts(runs: Iterable[StoredRun]) -> tuple[StoredRun, ...]:
    """Drop domain-generalization runs whose prompt also appears under cross-dataset transfer."""
    runs = tuple(runs)

    def prompt(run: StoredRun) -> tuple[object, ...]:
        r = run.result
        return r.suite, r.backbone.get("id"), r.dataset, r.label, r.shots, r.seed

    transferred = {prompt(run) for run in runs if run.result.protocol == CROSS_DATASET}
    return tuple(
        run for run in runs
        if run.result.protocol != DOMAIN_GENERALIZATION or prompt(run) not in transferred
    )  # fmt: skip


def best_row(runs: Sequence[StoredRun]) -> str | None:
    """Return the label with the best mean validation accuracy among those with all datasets.

    Test images are not used. None if nothing was validated.
    """
    datasets = {run.result.dataset for run in runs}
    means: dict[str, float] = {}
    for label in dict.fromkeys(run.result.label for run in runs):
        of_label = [run.result for run in runs if run.result.label == label]
        validated = [r.validation_accuracy for r in of_label if r.validation_accuracy is not None]
        if len(validated) == len(of_label) and {r.dataset for r in of_label} == datasets:
            means[label] = sum(validated) / len(validated)
    return max(means, key=lambda label: means[label], default=None)


def _file(path: Path) -> Path:
    return (path / FILE_NAME if path.is_dir() else path).resolve()


def _fault(predictions: StoredPredictions) -> str:
    n, classes = len(predictions.paths), len(predictions.class_names)
    shape = predictions.predicted.shape
    if predictions.labels.shape != (n,) or len(shape) != 2 or shape[0] != n or not shape[1]:
        return f"{n} paths, labels {predictions.labels.shape}, answers {shape}"
    if predictions.probabilities.shape != shape:
        return f"answers {shape}, probabilities {predictions.probabilities.shape}"
    known = [(numbers >= 0).all() and (numbers < classes).all()
             for numbers in (predictions.labels, predictions.predicted)]  # fmt: skip
    return "" if all(known) else f"labels beyond the {classes} classes"
