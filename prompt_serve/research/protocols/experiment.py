"""Train every row on a dataset with every seed, test the prompts, and store the results.

All protocols train here. Test images only ever reach finished prompts: the split that
``train_prompts`` receives has no test part, so nothing can be learned or selected on it.
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
    Result,
    StoredPredictions,
    append_results,
    environment,
    predictions_file,
    read_results,
)
from prompt_serve.research.protocols.rows import Row
from prompt_serve.scoring import calibrated
from prompt_serve.training.class_sets import split_of_labels, with_classes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.few_shot import Sampler, few_shot
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import prompt_logits
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.train import train_prompts
from prompt_serve.training.without_torch.evaluation import Evaluation, evaluate
from prompt_serve.training.without_torch.outcome import TrainingResult

TOP_CLASSES = 5  # most probable classes stored per image

Schedule = Callable[[str, Row, str, int], Mapping[str, Any]]  # protocol, row, dataset, shots


def equal_schedule(protocol: str, row: Row, dataset: str, shots: int) -> Mapping[str, Any]:
    """Return no settings: every row uses the requested ones, or TrainConfig's defaults."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Backbone, rows, seeds and settings of a protocol run."""

    backbone: Backbone
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: Mapping[str, Any] = field(default_factory=dict)  # for all rows, such as epochs
    schedule: Schedule = equal_schedule  # overridden by ``settings`` and by the rows
    out: Path | None = None  # run folder; results found there are not trained again
    appends: bool = True  # to the results file of the run folder; False: the caller does
    cache: FeatureCache | None = None
    workers: int = 4
    progress: Progress = SILENT
    on_result: Callable[[Result], object] = lambda result: None

    def config(
        self, protocol: str, row: Row, dataset: str, *, shots: int, seed: int
    ) -> TrainConfig:
        """Return the training configuration of a row."""
        scheduled = self.schedule(protocol, row, dataset, shots)
        config = row.config({"calibrate": True}, scheduled, self.settings)
        return config.replace(shots=shots, seed=seed)


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Test images under the name used in results."""

    __test__ = False  # pytest would take it for a test

    name: str
    images: ImageSet
    template: str  # hand-written sentence for the zero-shot row


@dataclass(frozen=True, kw_only=True)
class ProtocolTests:
    """Test sets of one protocol."""

    protocol: str
    test_sets: tuple[TestSet, ...]


def learn_and_test(
    experiment: Experiment,
    suite: str,
    dataset: BenchDataset,
    protocol_tests: Sequence[ProtocolTests],
    *,
    shots: int,
    labels: Sequence[int] | None = None,
    draw: Sampler = few_shot,
) -> list[Result]:
    """Train each row with each seed on ``dataset`` once and test it for each protocol.

    Args:
        experiment: rows, seeds and settings.
        suite: name stored in the results.
        dataset: source of the training and validation images.
        protocol_tests: test sets by protocol.
        shots: training images per class.
        labels: labels of the classes to learn; None: all.
        draw: samples the images.

    Returns:
        Results in the order of rows and seeds, including those that were stored already.

    Raises:
        ConfigInvalid: the run folder holds results of another configuration.
    """
    images = replace(dataset.split, test=None)
    split = images if labels is None else split_of_labels(images, labels)
    drawn = _drawn_once(images, labels, draw)
    session = _Session(experiment, suite, dataset, protocol_tests, shots, drawn)
    for planned_runs in session.batches():
        learned = train_prompts(
            experiment.backbone,
            split,
            [planned.config for planned in planned_runs],
            names=[dataset.name] * len(planned_runs),
            cache=experiment.cache,
            workers=experiment.workers,
            progress=experiment.progress,
            sampler=lambda split, /, *, shots, seed: drawn(shots, seed),
        )
        session.store(planned_runs, learned)
    return session.results()


def check_stored(
    experiment: Experiment, suite: str, dataset: BenchDataset, protocol: str, *, shots: int
) -> None:
    """Compare the results in the run folder with the settings of this run.

    Raises:
        ConfigInvalid: the run folder holds results of another configuration.
        ResultsInvalid: its results file is damaged.
    """
    tests = [ProtocolTests(protocol=protocol, test_sets=())]
    _Session(experiment, suite, dataset, tests, shots, _drawn_once(dataset.split, None, few_shot))


Drawn = Callable[[int, int], Split]  # shots, seed -> sampled images


def _drawn_once(whole: Split, labels: Sequence[int] | None, draw: Sampler) -> Drawn:
    """Sample over all classes first, then select the labels, as CoOp's code does.

    Rows share a sample, which takes seconds on ImageNet.
    """

    @cache
    def drawn(shots: int, seed: int) -> Split:
        split = draw(whole, shots=shots, seed=seed)
        return split if labels is None else split_of_labels(split, labels)

    return drawn


@dataclass(frozen=True, kw_only=True)
class _PlannedRun:
    """Row and configuration that still have to be trained."""

    row: Row
    config: TrainConfig


def trains_alone(config: TrainConfig) -> bool:
    """Return True for a run that needs the image tower at every step; others train together."""
    return METHODS[config.method].prompts_images(config.settings)


class _Session:
    """Runs that are still to train on one dataset, and their results."""

    def __init__(
        self,
        experiment: Experiment,
        suite: str,
        dataset: BenchDataset,
        protocol_tests: Sequence[ProtocolTests],
        shots: int,
        drawn: Drawn,
    ) -> None:
        self._drawn = drawn
        self._experiment, self._suite, self._dataset = experiment, suite, dataset
        self._protocol_tests, self._shots = protocol_tests, shots
        self._done = {result.run_id: result for result in stored_results(experiment.out)}
        self._prepared: dict[tuple[str, bool], ImageData] = {}
        self._ids: list[str] = []
        self._planned: list[_PlannedRun] = []
        for row in experiment.rows:
            for seed in experiment.seeds:
                self._add(row, seed)

    def _add(self, row: Row, seed: int) -> None:
        config = self._experiment.config(
            self._protocol_tests[0].protocol, row, self._dataset.name, shots=self._shots, seed=seed
        )
        if METHODS[row.method].learner is None:
            config = config.replace(template=self._dataset.template)
        requested = [self._blank(tests.protocol, row, config) for tests in self._protocol_tests]
        self._ids += [result.run_id for result in requested]
        for result in requested:
            self._check(result)
        if any(result.run_id not in self._done for result in requested):
            self._planned.append(_PlannedRun(row=row, config=config))

    def _check(self, requested: Result) -> None:
        stored = self._done.get(requested.run_id)
        if stored is None:
            return
        differ = [
            f"{name} was {stored.config.get(name)!r}, now {value!r}"
            for name, value in json.loads(json.dumps(requested.config)).items()
            if stored.config.get(name) != value
        ]
        if stored.backbone["fingerprint"] != requested.backbone["fingerprint"]:
            differ.append(f"backbone was {stored.backbone['id']}, now {requested.backbone['id']}")
        if differ:
            raise ConfigInvalid(
                f"{self._experiment.out} holds {requested.run_id} with other settings; name "
                f"another folder with --out:",
                differ,
            )

    def batches(self) -> Iterator[list[_PlannedRun]]:
        """Yield runs to train together; runs that need the image tower at every step go alone."""
        together = [planned for planned in self._planned if not trains_alone(planned.config)]
        if together:
            yield together
        yield from ([planned] for planned in self._planned if trains_alone(planned.config))

    def store(self, planned_runs: Sequence[_PlannedRun], learned: Sequence[TrainingResult]) -> None:
        """Test finished prompts and append their results."""
        for planned, result in zip(planned_runs, learned, strict=True):
            lines = [self._tested(tests, planned, result) for tests in self._protocol_tests]
            self._done |= {line.run_id: line for line in lines}
            if self._experiment.out and self._experiment.appends:
                append_results(self._experiment.out, lines)
            for line in lines:
                self._experiment.on_result(line)

    def results(self) -> list[Result]:
        return [self._done[run_id] for run_id in self._ids]

    def _tested(
        self, tests: ProtocolTests, planned: _PlannedRun, learned: TrainingResult
    ) -> Result:
        blank = self._blank(tests.protocol, planned.row, planned.config)
        measured: dict[str, Evaluation] = {}
        predictions: dict[str, StoredPredictions] = {}
        for test in tests.test_sets:
            found = self._predict(test, planned, learned.prompt)
            measured[test.name], predictions[test.name] = found
        if self._experiment.out:
            folder = self._experiment.out / "runs" / blank.run_id
            self._store_files(folder, planned, learned, predictions)
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

    def _predict(
        self, test: TestSet, planned: _PlannedRun, prompt: Prompt
    ) -> tuple[Evaluation, StoredPredictions]:
        backbone, names = self._experiment.backbone, test.images.class_names
        if METHODS[planned.row.method].learner is None:
            prompt = replace(prompt, templates=(test.template,))
        if names != prompt.class_names or not prompt.encodings:
            prompt = with_classes(prompt, names, backbone)
        data = self._data(test, as_pixels=trains_alone(planned.config))
        logits = prompt_logits(prompt, backbone, data)
        probabilities = calibrated(logits, prompt.temperature)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_CLASSES]
        return evaluate(logits, data.labels, prompt), StoredPredictions(
            paths=tuple(str(item.path) for item in test.images.items),
            labels=data.labels,
            probabilities=np.take_along_axis(probabilities, best, axis=1),
            predicted=best,
            class_names=names,
        )

    def _data(self, test: TestSet, *, as_pixels: bool) -> ImageData:
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

    def _store_files(
        self,
        folder: Path,
        planned: _PlannedRun,
        learned: TrainingResult,
        predictions: Mapping[str, StoredPredictions],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_prompt_file(learned.prompt, folder / "prompt.safetensors")
        drawn = self._drawn(planned.config.shots, planned.config.seed)
        paths = {
            part: [str(item.path) for item in images.items] for part, images in drawn.parts.items()
        }
        (folder / "images.json").write_text(json.dumps(paths, indent=1), encoding="utf-8")
        lines = (json.dumps(record.to_dict()) for record in learned.history)
        (folder / "history.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
        for name, found in predictions.items():
            found.save(folder / predictions_file(name))

    def _blank(self, protocol: str, row: Row, config: TrainConfig) -> Result:
        """Return the result line of a run that has not been trained."""
        ref = self._experiment.backbone.ref
        return Result(
            protocol=protocol,
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


def stored_results(out: Path | None) -> Sequence[Result]:
    """Return the results in a run folder; none if there is no such file yet."""
    return read_results(out) if out and (out / FILE_NAME).exists() else ()
