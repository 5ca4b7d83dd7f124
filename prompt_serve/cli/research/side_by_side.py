"""``--engine`` of ``protocol`` and ``reproduce``: parts of a run side by side.

A part is what the run trains together anyway: all text prompts of one dataset and number of shots,
or one prompt of the image tower. Nothing that is learned depends on where a part runs, so that the
results are those of one part after the other.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.cli.engine_options import LOCAL, Engine
from prompt_serve.cli.research.protocol_options import experiment_of, learn, shots_of
from prompt_serve.errors import PromptServeError, counted
from prompt_serve.training.many.processes import Failed

if TYPE_CHECKING:
    from prompt_serve.research.datasets.suite import Suite
    from prompt_serve.research.protocols.experiment import Experiment, Schedule
    from prompt_serve.research.protocols.results import Result


@dataclass(frozen=True, kw_only=True)
class Source:
    """How a process makes suite and schedule of the options of the command."""

    suite: "Callable[[Mapping[str, Any]], Suite]"
    schedule: "Callable[[Mapping[str, Any]], Schedule | None]"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows and seeds of a protocol, on one dataset with one number of shots."""

    protocol: str
    dataset: str  # trained on
    rows: tuple[str, ...]  # their labels
    seeds: tuple[int, ...]
    shots: int
    options: Mapping[str, Any]  # of the command, with the test sets of this part
    source: Source
    folder: Path  # working folder of the command

    def keys(self) -> set[tuple[str, str, str, int, int]]:
        """Return what identifies each result."""
        return {
            (self.protocol, self.dataset, label, self.shots, seed)
            for label in self.rows
            for seed in self.seeds
        }


def run_protocol(
    protocol: str,
    suite: "Suite",
    experiment: "Experiment",
    options: Mapping[str, Any],
    engine: Engine,
    source: Source,
) -> "list[Result]":
    """Check all datasets and the run folder, then run one protocol on a suite.

    Args:
        protocol: name of the protocol.
        suite: datasets to run on.
        experiment: rows, seeds, settings and run folder.
        options: of the command.
        engine: where the parts of the run are trained.
        source: of suite and schedule, for other processes.

    Raises:
        PromptServeError: something is wrong with a dataset or the run folder; nothing was trained.
            Or some parts failed.
    """
    from prompt_serve.research.protocols.preconditions import check_run

    check_run(
        suite,
        experiment,
        protocol,
        source=options["source"],
        datasets=options["datasets"],
        shots=shots_of(protocol, options),
    )
    if engine.name != LOCAL:
        parts = parts_of(protocol, suite, experiment, options, source)
        learn_side_by_side(engine, parts, experiment)
    return learn(protocol, suite, experiment, options)


def parts_of(
    protocol: str,
    suite: "Suite",
    experiment: "Experiment",
    options: Mapping[str, Any],
    source: Source,
) -> list[Part]:
    """Return the parts of a run, in the order in which one after the other is trained."""
    from prompt_serve.research.protocols.experiment import trains_alone
    from prompt_serve.research.protocols.summary import BASE_TO_NEW, FEW_SHOT

    transfers = protocol not in (BASE_TO_NEW, FEW_SHOT)
    targets = options["datasets"]  # of a transfer
    datasets = [options["source"] or suite.source] if transfers else suite.chosen(targets)
    parts = []
    for dataset in datasets:
        for k in shots_of(protocol, options):
            alone = [
                row.label
                for row in experiment.rows
                if trains_alone(experiment.config(protocol, row, dataset, shots=k, seed=1))
            ]
            together = tuple(row.label for row in experiment.rows if row.label not in alone)
            groups = [(together, experiment.seeds)] if together else []
            groups += [((label,), (seed,)) for label in alone for seed in experiment.seeds]
            parts += [
                Part(
                    protocol=protocol,
                    dataset=dataset,
                    rows=rows,
                    seeds=seeds,
                    options={
                        **options,
                        "shots": (k,),
                        "datasets": targets if transfers else (dataset,),
                    },
                    shots=k,
                    source=source,
                    folder=Path.cwd(),
                )
                for rows, seeds in groups
            ]
    return parts


def learn_side_by_side(engine: Engine, parts: Sequence[Part], experiment: "Experiment") -> None:
    """Train the parts that are not in the run folder yet; the results are stored in order.

    Raises:
        PromptServeError: some parts failed; the results of the others are stored.
    """
    from prompt_serve.research.protocols.experiment import stored_results
    from prompt_serve.research.protocols.results import replace_results

    out = experiment.out
    if out is None:
        raise TypeError("Parts of a run meet in its folder.")
    before = stored_results(out)
    stored = {(r.protocol, r.dataset, r.label, r.shots, r.seed) for r in before}
    todo = [part for part in parts if not part.keys() <= stored]
    found: dict[int, list[Result]] = {}
    faults = []
    for index, outcome in engine.map(learn_part, todo):
        if isinstance(outcome, Failed):
            faults.append(f"{todo[index].dataset}, {' '.join(todo[index].rows)}: {outcome.message}")
            continue
        known = {result.run_id for result in before}
        found[index] = [result for result in outcome if result.run_id not in known]
        replace_results(out, [*before, *(r for part in sorted(found) for r in found[part])])
        for result in found[index]:
            experiment.on_result(result)
    if faults:
        lines = "".join(f"\n  - {' '.join(fault.split())}" for fault in faults)
        raise PromptServeError(
            f"{counted(len(faults), 'part')} of the run failed, and the results of the others are "
            f"in {out}:{lines}"
        )


def learn_part(part: Part) -> "list[Result] | Failed":
    """Train and test a part in this process; the caller stores the results."""
    os.chdir(part.folder)  # paths are as the command was given them
    try:
        suite = part.source.suite(part.options)
        whole = experiment_of({**part.options, "quiet": True}, part.source.schedule(part.options))
        rows = tuple(row for row in whole.rows if row.label in part.rows)
        experiment = replace(whole, rows=rows, seeds=part.seeds, appends=False)
        return learn(part.protocol, suite, experiment, part.options)
    except PromptServeError as error:
        return Failed(error.message)
