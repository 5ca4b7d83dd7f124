"""Learn every row on a dataset for every seed, test it, and keep what came out.

The one place where protocols learn. Test images are handed to a prompt that is finished, and
nothing that learns or chooses is given any: the split that ``train_prompts`` sees has no test part.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.prompt_file import Prompt, write_prompt_file
from prompt_serve.research.datasets.suite import BenchDataset
from prompt_serve.research.protocols.results import (
    FILE_NAME,
    Answers,
    Result,
    append_results,
    environment,
    read_results,
)
from prompt_serve.research.protocols.rows import Row
from prompt_serve.scoring import calibrated
from prompt_serve.training.class_sets import split_of_labels, with_classes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.few_shot import Sampler, few_shot
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import Evaluation, evaluate, prompt_logits
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.sweep import train_prompts
from prompt_serve.training.train import TrainingResult, image_data

ANSWERS_KEPT = 5  # most probable classes of an image

Schedule = Callable[[str, Row, str, int], Mapping[str, Any]]  # protocol, row, dataset, shots


def equal_schedule(protocol: str, row: Row, dataset: str, shots: int) -> Mapping[str, Any]:
    """The same settings for every row: what is asked for, or TrainConfig's defaults."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all protocols are run with."""

    backbone: Backbone
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: Mapping[str, Any] = field(default_factory=dict)  # for all rows, such as epochs
    schedule: Schedule = equal_schedule  # settings that ``settings`` and the rows win over
    out: Path | None = None  # run folder; lines that are there are not learned again
    cache: FeatureCache | None = None
    workers: int = 4
    progress: Progress = SILENT
    on_result: Callable[[Result], object] = lambda result: None

    def config(
        self, protocol: str, row: Row, dataset: str, *, shots: int, seed: int
    ) -> TrainConfig:
        """How a row is learned."""
        scheduled = self.schedule(protocol, row, dataset, shots)
        config = row.config({"calibrate": True}, scheduled, self.settings)
        return config.replace(shots=shots, seed=seed)


@dataclass(frozen=True, kw_only=True)
class TestImages:
    """A test set under the name that results give it."""

    __test__ = False  # pytest would take it for a test

    name: str
    images: ImageSet
    template: str  # hand-written, for the zero-shot row


@dataclass(frozen=True, kw_only=True)
class Report:
    """Under which protocol the answers on some test sets are kept."""

    protocol: str
    tests: tuple[TestImages, ...]


def learn_and_test(
    experiment: Experiment,
    suite: str,
    dataset: BenchDataset,
    reports: Sequence[Report],
    *,
    shots: int,
    labels: Sequence[int] | None = None,
    draw: Sampler = few_shot,
) -> list[Result]:
    """Learn each row with each seed on ``dataset`` once, and report it under each of ``reports``.

    Args:
        experiment: rows, seeds and the rest.
        suite: kept in the results.
        dataset: whose train and validation images are drawn from.
        reports: test sets by protocol.
        shots: images a class.
        labels: of the classes to learn, whose split ``draw`` returns; None: all.
        draw: draws the images.

    Returns:
        Those that were there already included, in the order of rows and seeds.

    Raises:
        ConfigInvalid: the run folder holds results of another configuration.
    """
    images = replace(dataset.split, test=None)
    split = images if labels is None else split_of_labels(images, labels)
    drawn = _drawn_once(images, labels, draw)
    session = _Session(experiment, suite, dataset, reports, shots, drawn)
    for jobs in session.batches():
        learned = train_prompts(
            experiment.backbone,
            split,
            [job.config for job in jobs],
            names=[dataset.name] * len(jobs),
            cache=experiment.cache,
            workers=experiment.workers,
            progress=experiment.progress,
            draw=lambda split, /, *, shots, seed: drawn(shots, seed),
        )
        session.keep(jobs, learned)
    return session.results()


Drawn = Callable[[int, int], Split]  # of shots and seed


def _drawn_once(whole: Split, labels: Sequence[int] | None, draw: Sampler) -> Drawn:
    """Draw over all classes first, then keep some: base images are those of the all-class draw, as
    CoOp's code has it. Rows share a draw, which takes seconds on ImageNet."""

    @cache
    def drawn(shots: int, seed: int) -> Split:
        split = draw(whole, shots=shots, seed=seed)
        return split if labels is None else split_of_labels(split, labels)

    return drawn


@dataclass(frozen=True, kw_only=True)
class _Job:
    row: Row
    config: TrainConfig


class _Session:
    """What is still to learn on one dataset, and what came of it."""

    def __init__(
        self,
        experiment: Experiment,
        suite: str,
        dataset: BenchDataset,
        reports: Sequence[Report],
        shots: int,
        drawn: Drawn,
    ) -> None:
        self._drawn = drawn
        self._experiment, self._suite, self._dataset = experiment, suite, dataset
        self._reports, self._shots = reports, shots
        self._done = {result.run_id: result for result in _there(experiment.out)}
        self._prepared: dict[tuple[str, bool], ImageData] = {}
        self._ids: list[str] = []
        self._jobs: list[_Job] = []
        for row in experiment.rows:
            for seed in experiment.seeds:
                self._add(row, seed)

    def _add(self, row: Row, seed: int) -> None:
        config = self._experiment.config(
            self._reports[0].protocol, row, self._dataset.name, shots=self._shots, seed=seed
        )
        if METHODS[row.method].learner is None:
            config = config.replace(template=self._dataset.template)
        wanted = [self._blank(report, row, config) for report in self._reports]
        self._ids += [result.run_id for result in wanted]
        for result in wanted:
            self._check(result)
        if any(result.run_id not in self._done for result in wanted):
            self._jobs.append(_Job(row=row, config=config))

    def _check(self, wanted: Result) -> None:
        kept = self._done.get(wanted.run_id)
        if kept is None:
            return
        differ = [
            f"{name} was {kept.config.get(name)!r}, now {value!r}"
            for name, value in json.loads(json.dumps(wanted.config)).items()
            if kept.config.get(name) != value
        ]
        if kept.backbone["fingerprint"] != wanted.backbone["fingerprint"]:
            differ.append(f"backbone was {kept.backbone['id']}, now {wanted.backbone['id']}")
        if differ:
            raise ConfigInvalid(
                f"{self._experiment.out} holds {wanted.run_id} learned otherwise; name another "
                f"folder with --out:",
                differ,
            )

    def batches(self) -> Iterator[list[_Job]]:
        """Jobs to learn together; where the image tower runs at every step, one at a time."""
        together = [job for job in self._jobs if not self._as_pixels(job.config)]
        if together:
            yield together
        yield from ([job] for job in self._jobs if self._as_pixels(job.config))

    def keep(self, jobs: Sequence[_Job], learned: Sequence[TrainingResult]) -> None:
        """Test prompts that are finished, and write them down."""
        for job, result in zip(jobs, learned, strict=True):
            lines = [self._tested(report, job, result) for report in self._reports]
            self._done |= {line.run_id: line for line in lines}
            if self._experiment.out:
                append_results(self._experiment.out, lines)
            for line in lines:
                self._experiment.on_result(line)

    def results(self) -> list[Result]:
        return [self._done[run_id] for run_id in self._ids]

    def _tested(self, report: Report, job: _Job, learned: TrainingResult) -> Result:
        blank = self._blank(report, job.row, job.config)
        measured: dict[str, Evaluation] = {}
        answers: dict[str, Answers] = {}
        for test in report.tests:
            measured[test.name], answers[test.name] = self._answered(test, job, learned.prompt)
        if self._experiment.out:
            self._keep_files(self._experiment.out / "runs" / blank.run_id, job, learned, answers)
        last = learned.history[-1] if learned.history else None
        rate = learned.prompt.training["learning_rate"]
        return replace(
            blank,
            accuracy={name: found.accuracy for name, found in measured.items()},
            calibration_error={name: f.calibration_error for name, f in measured.items()},
            images={**{name: found.images for name, found in measured.items()}, **learned.images},
            classes={name: len(found.per_class) for name, found in measured.items()},
            validation_accuracy=last.val_accuracy if last else None,
            trained_numbers=learned.trained_numbers,
            payload_bytes=learned.prompt.payload_bytes,
            learning_rate=rate if last else None,
            seconds=sum(record.seconds for record in learned.history),
            idk=last.idk if last else (),
        )

    def _answered(self, test: TestImages, job: _Job, prompt: Prompt) -> tuple[Evaluation, Answers]:
        backbone, names = self._experiment.backbone, test.images.class_names
        if METHODS[job.row.method].learner is None:
            prompt = replace(prompt, templates=(test.template,))
        if names != prompt.class_names or not prompt.encodings:
            prompt = with_classes(prompt, names, backbone)
        data = self._data(test, as_pixels=self._as_pixels(job.config))
        logits = prompt_logits(prompt, backbone, data)
        probabilities = calibrated(logits, prompt.temperature)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :ANSWERS_KEPT]
        return evaluate(logits, data.labels, prompt), Answers(
            paths=tuple(str(item.path) for item in test.images.items),
            labels=data.labels,
            probabilities=np.take_along_axis(probabilities, best, axis=1),
            predicted=best,
            class_names=names,
        )

    def _data(self, test: TestImages, *, as_pixels: bool) -> ImageData:
        key = (test.name, as_pixels)
        if key not in self._prepared:
            experiment = self._experiment
            with experiment.progress.bar(f"reading {test.name}", len(test.images), "img") as bar:
                self._prepared[key] = image_data(
                    test.images,
                    experiment.backbone,
                    as_pixels=as_pixels,
                    cache=experiment.cache,
                    workers=experiment.workers,
                    advance=bar,
                )
        return self._prepared[key]

    def _keep_files(
        self, folder: Path, job: _Job, learned: TrainingResult, answers: Mapping[str, Answers]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_prompt_file(learned.prompt, folder / "prompt.safetensors")
        drawn = self._drawn(job.config.shots, job.config.seed)
        paths = {
            part: [str(item.path) for item in images.items] for part, images in drawn.parts.items()
        }
        (folder / "images.json").write_text(json.dumps(paths, indent=1), encoding="utf-8")
        lines = (json.dumps(record.to_dict()) for record in learned.history)
        (folder / "history.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
        for name, found in answers.items():
            found.save(folder / f"answers-{name}.npz")

    def _blank(self, report: Report, row: Row, config: TrainConfig) -> Result:
        """The line of a run that has not been learned."""
        ref = self._experiment.backbone.ref
        return Result(
            protocol=report.protocol,
            suite=self._suite,
            dataset=self._dataset.name,
            method=row.method,
            label=row.label,
            seed=config.seed,
            shots=self._shots,
            accuracy={},
            calibration_error={},
            images={},
            classes={},
            validation_accuracy=None,
            trained_numbers=0,
            payload_bytes=0,
            learning_rate=None,
            seconds=0.0,
            config=config.to_dict(),
            backbone={"id": ref.id, "fingerprint": ref.fingerprint},
            environment=environment(),
        )

    def _as_pixels(self, config: TrainConfig) -> bool:
        return METHODS[config.method].prompts_images(config.settings)


def _there(out: Path | None) -> Sequence[Result]:
    return read_results(out) if out and (out / FILE_NAME).exists() else ()
