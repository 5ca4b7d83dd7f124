"""``prompt-serve train``: make a prompt file from a folder of images."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from prompt_serve.cli.facts import Report, json_option
from prompt_serve.cli.learning.evaluation_report import write_training_report
from prompt_serve.cli.learning.image_options import (
    column_names,
    device_of,
    feature_cache,
    image_options,
)
from prompt_serve.cli.learning.multi_label import learn_multi_label
from prompt_serve.cli.learning.prompt_backbone import remember_backbone
from prompt_serve.cli.learning.select_method import (
    AUTO_METHOD,
    base_settings,
    frontier_report,
    is_auto,
    train_auto,
)
from prompt_serve.cli.learning.train_options import TrainCommand
from prompt_serve.cli.learning.train_report import training_document, training_report
from prompt_serve.cli.learning.train_seeds import parse_seeds, path_of_seed, train_seeds
from prompt_serve.cli.learning.train_without_torch import torch_is_missing, train_without_torch
from prompt_serve.cli.output_file import OutputFile, cannot_write, save
from prompt_serve.cli.signing.signer import Signer
from prompt_serve.cli.tracking import tracked_runs, tracking_options
from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.multi_label.train import MultiLabelResult
    from prompt_serve.training.tracking.runs import TrackedRuns
    from prompt_serve.training.without_torch.outcome import TrainingResult


@click.command(cls=TrainCommand)
@click.argument("dataset", type=UserPath(path_type=str))
@click.option(
    "--out", "-o", type=OutputFile(), required=True,
    help="Prompt file to write, such as pets.safetensors.",
)  # fmt: skip
@click.option(
    "--backbone", default="embedded", show_default=True,
    help="Frozen CLIP: embedded, embedded-vit, MODEL/TAG as in ViT-B-16/openai, "
    "MODEL/TAG@FILE or MODEL@FILE with a checkpoint, or a folder.",
)  # fmt: skip
@click.option(
    "--config", "config_file", type=UserPath(), default=None,
    help="TOML file of settings by their long names (learning_rate = 0.2); options win over it.",
)  # fmt: skip
@click.option(
    "--method", metavar="NAME",
    help="Method, such as class-vectors or dip ('prompt-serve methods' lists all), or auto to "
    "choose by cross-validation. Each has options of its own: --method NAME --help. "
    "[default: auto]",
)  # fmt: skip
@click.option(
    "--template", "templates", multiple=True,
    help="Sentence with {} for the class name; given several times with zero-shot, the features "
    "are averaged. [default: 'a photo of a {}.']",
)  # fmt: skip
@click.option(
    "--multi-label", is_flag=True,
    help="Learn independent labels: an image has several of them, one, or none. DATASET is a table "
    "with labels such as dog;grass, or nested folders.",
)  # fmt: skip
@click.option(
    "--seeds", callback=parse_seeds, metavar="1,2,3",
    help="Train once per seed, all at once, and write NAME-seed1.safetensors, ...",
)  # fmt: skip
@click.option(
    "--sketch/--no-sketch", default=True, show_default=True,
    help="Store a sketch of the training images, by which the task recognizes images of another "
    "kind as unknown.",
)  # fmt: skip
@click.option(
    "--report", type=OutputFile(),
    help="HTML file to write: accuracy, confusions, mistakes, thresholds and calibration on the "
    "test images, or on training images that were left out in turn.",
)  # fmt: skip
@click.option("--name", help="Task name stored in the file. [default: the file's name]")
@click.option(
    "--sign", type=Signer(),
    help="Sign the prompt file with this private key; 'prompt-serve keygen' makes one.",
)  # fmt: skip
@click.option(
    "--stamp/--no-stamp", default=False, show_default=True,
    help="Write the time into the file; equal runs then give different bytes.",
)  # fmt: skip
@click.option(
    "--log", "log_file", type=OutputFile(in_place=True),
    help="JSON Lines file to write: a line per epoch, then one with the result.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=OutputFile(),
    help="Checkpoint file, written after every epoch; an interrupted run resumes bit-exactly.",
)  # fmt: skip
@tracking_options
@image_options
@click.option("--quiet", is_flag=True, help="Show no progress bars and no report.")
@json_option
def train(**options: Any) -> None:
    """Learn a classifier for DATASET and write it to a prompt file.

    DATASET is a folder with one folder of images per class (or with train, val and test folders of
    such), a folder with metadata.csv, a CSV, JSON or Parquet table with paths or bytes of images,
    labels and optionally split, tar archives (WebDataset), a pattern of these, a URL (s3://, gs://,
    hf://datasets/), or CoOp's split_zhou_*.json. By default all images are used and a method is
    chosen; test images are used once, at the end. Prompts hold out some training images where there
    are none to validate on.

    \b
    prompt-serve train flowers/ --out flowers.safetensors
    prompt-serve train s3://bucket/flowers/ --out flowers.safetensors
    prompt-serve train 'shards/*.tar' --label-column species --out flowers.safetensors
    """
    if options["multi_label"]:
        _train_multi_label(options)
        return
    if torch_is_missing():
        _train_without_torch(options)
        return
    from prompt_serve.training.clip.backbone import load_backbone
    from prompt_serve.training.config import make_config
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.train import open_dataset

    values = _values(options)
    by_itself = is_auto(values)
    _check_options(options, by_itself=by_itself)
    runs = _runs(options)
    config = make_config(base_settings(values) if by_itself else values)
    cache = feature_cache(options)
    progress = Progress(quiet=options["quiet"])
    backbone = load_backbone(options["backbone"]).to(device_of(options["device"]))
    remember_backbone(backbone, options["backbone"])
    dataset = open_dataset(
        options["dataset"],
        backbone,
        config,
        images=options["images"],
        columns=column_names(options),
        rename=options["renames"],
        on_bad_image=options["on_bad_image"],
        workers=options["workers"],
        progress=progress,
    )
    learn = _train_auto if by_itself else _train_seeds if options["seeds"] else _train_one
    with _Log(options["log_file"], runs) as log:
        log.begin(options["seeds"])
        report = log.finished(
            learn(
                options,
                log,
                {
                    "backbone": backbone,
                    "dataset": dataset,
                    "config": config,
                    "cache": cache,
                    "workers": options["workers"],
                    "progress": progress,
                    "extras": _extras(options),
                },
            )
        )
    report.print(as_json=options["as_json"], quiet=options["quiet"])


def _train_without_torch(options: Mapping[str, Any]) -> None:
    _check_options(options, by_itself=False)
    with _Log(options["log_file"], _runs(options)) as log:
        result, dataset = train_without_torch(options, _extras(options))
        report = log.finished(_written(result, options, log, dataset))
    report.print(as_json=options["as_json"], quiet=options["quiet"])


def _train_multi_label(options: Mapping[str, Any]) -> None:
    _check_options(options, by_itself=False)
    with _Log(options["log_file"], _runs(options)) as log:
        report = log.finished(
            learn_multi_label(
                options, log.write, lambda result: _stamped(result, stamp=options["stamp"])
            )
        )
    report.print(as_json=options["as_json"], quiet=options["quiet"])


def _check_options(options: Mapping[str, Any], *, by_itself: bool) -> None:
    for seed in options["seeds"]:
        OutputFile().convert(path_of_seed(options["out"], seed), None, None)
    if options["seeds"] and (by_itself or options["checkpoint"]):
        raise click.UsageError("--seeds works neither with --method auto nor with --checkpoint.")
    if options["seeds"] and options["report"]:
        raise click.UsageError("--report is for one run; --seeds does many.")
    if by_itself and options["checkpoint"]:
        raise click.UsageError("--checkpoint is for one run; --method auto does many.")
    if by_itself and options["frontier"]:
        from prompt_serve.training.selection.pareto import check_frontier_path

        check_frontier_path(options["frontier"])


def _runs(options: Mapping[str, Any]) -> "TrackedRuns | None":
    def name_of(seed: int | None) -> str:
        name = options["track_run"] or options["name"] or options["out"].stem
        return name if seed is None else path_of_seed(Path(name), seed).name

    return tracked_runs(options, name_of)


def _train_one(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> Report:
    from prompt_serve.training.train import train_prompt

    out: Path = options["out"]
    result = train_prompt(
        name=options["name"] or out.stem,
        on_epoch=lambda record: log.write(record.to_dict()),
        checkpoint=options["checkpoint"],
        **task,
    )
    return _written(result, options, log, task["dataset"])


def _train_seeds(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> Report:
    return train_seeds(
        seeds=options["seeds"],
        out=options["out"],
        name=options["name"],
        log=log.write,
        stamped=lambda result: _stamped(result, stamp=options["stamp"]),
        signed=options["sign"],
        **task,
    )


def _train_auto(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> Report:
    chosen = train_auto(
        max_bytes=options["max_bytes"],
        max_seconds=options["max_seconds"],
        open_vocabulary=options["open_vocabulary"],
        frontier=options["frontier"],
        candidates=options["candidates"],
        name=options["name"] or options["out"].stem,
        log=log.write,
        **task,
    )
    report = _written(chosen.result, options, log, task["dataset"])
    candidates = [candidate.to_dict() for candidate in chosen.candidates]
    return Report(
        {**report.document, "candidates": candidates},
        [*frontier_report(chosen.candidates), "", *report.lines],
    )


def _extras(options: Mapping[str, Any]) -> Any:
    from prompt_serve.training.without_torch.outcome import Extras

    return Extras(sketch=options["sketch"], scores=options["report"] is not None)


def _written(
    result: "TrainingResult", options: Mapping[str, Any], log: "_Log", dataset: "Split"
) -> Report:
    """Write the prompt file and the page of ``--report``; return what to print."""
    from prompt_serve.prompts.prompt_file import write_prompt_file
    from prompt_serve.training.findings import with_findings

    result = with_findings(result, dataset, workers=options["workers"])
    log.write({"metrics": dict(result.prompt.metrics), "seconds": dict(result.seconds)})
    prompt = _stamped(result, stamp=options["stamp"])
    path = save(options["out"], lambda path: write_prompt_file(prompt, path, options["sign"]))
    file_bytes = path.stat().st_size
    lines = list(training_report(result, path, file_bytes))
    document = training_document(result, path, file_bytes)
    if options["report"]:
        page = write_training_report(options["report"], result, dataset, file_bytes)
        nowhere = "not written: no image was held out to measure the accuracy on"
        lines.append(f"report       {page or nowhere}")
        document["report"] = str(page) if page else None
    return Report(document, lines)


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name: those of the file, overridden by those of the command line."""
    from prompt_serve.training.config import (
        TrainConfig,
        read_config_file,
        with_user_settings,
    )
    from prompt_serve.training.methods import find_method
    from prompt_serve.training.settings import settings_of

    values = read_config_file(options["config_file"]) if options["config_file"] else {}
    values.setdefault("method", AUTO_METHOD)
    values |= {"method": options["method"]} if options["method"] else {}
    own = () if is_auto(values) else settings_of(find_method(values["method"]).settings)
    given = {name: options[name] for name in (*settings_of(TrainConfig), *own)}
    values |= {name: value for name, value in given.items() if value is not None}
    match options["templates"]:
        case (template,):
            values |= {"template": template, "templates": ()}
        case (template, *_) as several:
            values |= {"template": template, "templates": several}
    return with_user_settings(values)


def _stamped(result: "TrainingResult | MultiLabelResult", *, stamp: bool) -> Any:
    from dataclasses import replace
    from datetime import UTC, datetime

    if not stamp:
        return result.prompt
    return replace(result.prompt, created=datetime.now(UTC).isoformat(timespec="seconds"))


class _Log:
    """Log of a run: a JSON Lines file, flushed after every line, and a tracker.

    A run continues without its log if the log cannot be written any more.
    """

    def __init__(self, path: Path | None, runs: "TrackedRuns | None") -> None:
        self._path, self._runs = path, runs
        self._file: TextIO | None = None

    def __enter__(self) -> "_Log":
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._runs:
            self._runs.close()
        if self._file:
            self._close(self._file)

    def begin(self, seeds: Sequence[int]) -> None:
        """Begin the runs of the tracker, one per seed, or one."""
        for seed in seeds or (None,):
            if self._runs:
                self._runs.begin(seed)

    def write(self, line: Mapping[str, Any]) -> None:
        if self._runs:
            self._runs.line(line)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            click.echo(
                f"Warning: {cannot_write(Path(self._file.name), error)} The run continues without "
                f"a log.",
                err=True,
            )
            self._close(self._file)
            self._file = None

    def finished(self, report: Report) -> Report:
        """Log the outcome of each run; return the report with the places where it is tracked."""
        if self._runs is None:
            return report
        several = isinstance(report.document, list)
        tracked = [
            {**document, "tracked": self._runs.finish(document)}
            for document in (report.document if several else [report.document])
        ]
        places = [f"tracked      {one['tracked']}" for one in tracked if one["tracked"]]
        return Report(tracked if several else tracked[0], [*report.lines, *places])

    @staticmethod
    def _close(file: TextIO) -> None:
        with contextlib.suppress(OSError):  # of a line that could not be written
            file.close()
