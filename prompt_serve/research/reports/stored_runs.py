"""What a protocol kept of its runs: a line of results each, and files that are read when asked for.

Nothing but the line is needed. Who copies ``results.jsonl`` alone gets the tables, and for each
figure a line that says which files it would want.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prompt_serve.errors import ResultsInvalid
from prompt_serve.prompts.prompt_file import Prompt, read_prompt_file
from prompt_serve.research.protocols.results import FILE_NAME, Answers, Result, read_results
from prompt_serve.research.protocols.summary import (
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    comparison_of,
)
from prompt_serve.training.loop import EpochRecord

PROMPT, HISTORY = "prompt.safetensors", "history.jsonl"


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One learned prompt: its line, and the folder with the rest."""

    result: Result
    folder: Path  # may not be there

    @cached_property
    def history(self) -> tuple[EpochRecord, ...]:
        """The log; empty where none was kept or nothing was learned.

        Raises:
            ResultsInvalid: a line is no record of an epoch.
        """
        file = self.folder / HISTORY
        if not file.is_file():
            return ()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            return tuple(EpochRecord(**json.loads(line)) for line in lines if line)
        except (OSError, ValueError, TypeError) as error:
            raise ResultsInvalid(f"{file} is no log of epochs: {error!r}.") from error

    @property
    def prompt(self) -> Prompt | None:
        """What was learned; None where no file was kept.

        Raises:
            PromptFileInvalid: the file is damaged.
        """
        file = self.folder / PROMPT
        return read_prompt_file(file) if file.is_file() else None

    @property
    def answered(self) -> tuple[str, ...]:
        """Test sets whose answers were kept, in the order of the line."""
        names = (name for name in self.result.accuracy if Path(name).name == name)
        return tuple(name for name in names if self._answers(name).is_file())

    def answers(self, test_set: str) -> Answers:
        """What was answered on one of ``answered``.

        Raises:
            ResultsInvalid: the file does not hold answers.
        """
        file = self._answers(test_set)
        try:
            answers = Answers.load(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ResultsInvalid(f"{file} holds no answers: {error!r}.") from error
        if fault := _fault(answers):
            raise ResultsInvalid(f"{file} contradicts itself: {fault}.")
        return answers

    def _answers(self, test_set: str) -> Path:
        return self.folder / f"answers-{test_set}.npz"


def read_runs(paths: Iterable[Path]) -> tuple[StoredRun, ...]:
    """All runs of some run folders or results files; of two lines of one run the last counts.

    Raises:
        ResultsInvalid: a file is missing or none of ours, or there is no line at all.
    """
    files = list(dict.fromkeys(_file(path) for path in paths))
    runs: dict[tuple[tuple[str, str, str], str], StoredRun] = {}
    for file in files:
        for result in read_results(file):
            folder = file.parent / "runs" / result.run_id
            runs[comparison_of(result), result.run_id] = StoredRun(result=result, folder=folder)
    if not runs:
        raise ResultsInvalid(
            f"{', '.join(map(str, files))}: no line of results. A run that was stopped early may "
            f"have written none yet."
        )
    return tuple(runs.values())


def by_comparison(runs: Iterable[StoredRun]) -> dict[tuple[str, str, str], tuple[StoredRun, ...]]:
    """The runs of each protocol, suite and backbone, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(comparison_of(run.result), []).append(run)
    return {key: tuple(group) for key, group in groups.items()}


def learned_once(runs: Iterable[StoredRun]) -> tuple[StoredRun, ...]:
    """Without the lines of domain generalization whose prompts stand under cross-dataset transfer
    already: both test one and the same prompt."""
    runs = tuple(runs)

    def prompt(run: StoredRun) -> tuple[object, ...]:
        r = run.result
        return r.suite, r.backbone.get("id"), r.dataset, r.label, r.shots, r.seed

    there = {prompt(run) for run in runs if run.result.protocol == CROSS_DATASET}
    return tuple(
        run for run in runs
        if run.result.protocol != DOMAIN_GENERALIZATION or prompt(run) not in there
    )  # fmt: skip


def best_row(runs: Sequence[StoredRun]) -> str | None:
    """The label with the best validation accuracy, mean over its runs, of those that learned on
    all datasets; test images are not looked at. None where nothing was validated."""
    datasets = {run.result.dataset for run in runs}
    means: dict[str, float] = {}
    for label in dict.fromkeys(run.result.label for run in runs):
        own = [run.result for run in runs if run.result.label == label]
        validated = [r.validation_accuracy for r in own if r.validation_accuracy is not None]
        if len(validated) == len(own) and {r.dataset for r in own} == datasets:
            means[label] = sum(validated) / len(validated)
    return max(means, key=lambda label: means[label], default=None)


def _file(path: Path) -> Path:
    return (path / FILE_NAME if path.is_dir() else path).resolve()


def _fault(answers: Answers) -> str:
    n, classes = len(answers.paths), len(answers.class_names)
    shape = answers.predicted.shape
    if answers.labels.shape != (n,) or len(shape) != 2 or shape[0] != n or not shape[1]:
        return f"{n} paths, labels {answers.labels.shape}, answers {shape}"
    if answers.probabilities.shape != shape:
        return f"answers {shape}, probabilities {answers.probabilities.shape}"
    known = [(numbers >= 0).all() and (numbers < classes).all()
             for numbers in (answers.labels, answers.predicted)]  # fmt: skip
    return "" if all(known) else f"labels beyond the {classes} classes"
