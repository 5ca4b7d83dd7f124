"""``prompt-serve train``: from a folder of images to a prompt file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from prompt_serve.cli.learning.image_options import device_of, feature_cache, image_options
from prompt_serve.cli.learning.select_method import (
    base_settings,
    frontier_report,
    is_auto,
    train_auto,
)
from prompt_serve.cli.learning.train_options import SectionedCommand, setting_options
from prompt_serve.cli.learning.train_seeds import parse_seeds, train_seeds

if TYPE_CHECKING:
    from prompt_serve.training.results import TrainingResult, ZeroShotComparison

CLASSES_SHOWN = 40


@click.command(cls=SectionedCommand)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True,
    help="Prompt file to write, such as pets.safetensors.",
)  # fmt: skip
@click.option(
    "--backbone", default="embedded", show_default=True,
    help="Frozen CLIP: embedded, embedded-vit, MODEL/TAG as in ViT-B-16/openai, or MODEL@FILE "
    "with a checkpoint.",
)  # fmt: skip
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), default=None,
    help="TOML file with settings by their long names (learning_rate = 0.2); options win over it.",
)  # fmt: skip
@click.option(
    "--method",
    help="What is learned, such as dip, coop or zero-shot; prompt-serve methods lists all. "
    "auto chooses by validation under --max-bytes. [default: dip]",
)
@click.option(
    "--template", "templates", multiple=True,
    help="Sentence with {} for the class name; for zero-shot several, whose features are "
    "averaged. [default: 'a photo of a {}.']",
)  # fmt: skip
@setting_options
@click.option(
    "--seeds", callback=parse_seeds, metavar="1,2,3",
    help="Learn once for each of these seeds, together, and write NAME-seed1.safetensors, ...",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(min=0),
    help="With --method auto: the most bytes that learned numbers may take. [default: 4096]",
)  # fmt: skip
@click.option(
    "--frontier", type=click.Path(path_type=Path),
    help="With --method auto: table (.tsv, .json) or plot (.svg, .png) of bytes against accuracy "
    "to write, or a folder for all of them.",
)  # fmt: skip
@click.option(
    "--candidates", type=click.Choice(["text", "all"]), default="text", show_default=True,
    help="With --method auto: text methods, or also those that prompt the image tower.",
)  # fmt: skip
@click.option("--name", help="Name kept in the file. [default: the file's own]")
@click.option(
    "--stamp/--no-stamp", default=False, show_default=True,
    help="Write the time into the file; two equal runs then give different bytes.",
)  # fmt: skip
@click.option(
    "--log", "log_file", type=click.Path(path_type=Path),
    help="JSON lines to write: one an epoch, then one with the result.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Path(path_type=Path),
    help="File written after every epoch; a run that was stopped goes on from it, exactly.",
)  # fmt: skip
@image_options
@click.option("--quiet", is_flag=True, help="No progress bars and no report.")
def train(**options: Any) -> None:
    """Learn a compact prompt for DATASET and write it to a prompt file.

    DATASET is a folder with one folder of images a class (or with train, val and test folders of
    such), a CSV or Parquet table with the columns path, label and perhaps split, or CoOp's
    split_zhou_*.json. Validation images are held out where there are none; test images are only
    looked at once, at the end.

    Example: prompt-serve train flowers/ --method dip --shots 16 --seed 1 --out flowers.safetensors
    """
    from prompt_serve.training.clip.backbone import load_backbone
    from prompt_serve.training.config import make_config
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.train import open_dataset

    values = _values(options)
    by_itself = is_auto(values)
    _check_options(options, by_itself=by_itself)
    config = make_config(base_settings(values) if by_itself else values)
    progress = Progress(quiet=options["quiet"])
    backbone = load_backbone(options["backbone"]).to(device_of(options["device"]))
    dataset = open_dataset(
        options["dataset"],
        backbone,
        config,
        images=options["images"],
        rename=options["renames"],
        workers=options["workers"],
        progress=progress,
    )
    learn = _train_auto if by_itself else _train_seeds if options["seeds"] else _train_one
    with _Log(options["log_file"]) as log:
        report = learn(
            options,
            log,
            {
                "backbone": backbone,
                "dataset": dataset,
                "config": config,
                "cache": feature_cache(options),
                "workers": options["workers"],
                "progress": progress,
            },
        )
    if not options["quiet"]:
        click.echo("\n".join(report))


def _check_options(options: Mapping[str, Any], *, by_itself: bool) -> None:
    if options["out"].is_dir():
        raise click.BadParameter(f"{options['out']} is a folder; name a file in it.")
    if options["seeds"] and (by_itself or options["checkpoint"]):
        raise click.UsageError("--seeds goes neither with --method auto nor with --checkpoint.")
    if by_itself and options["checkpoint"]:
        raise click.UsageError("--checkpoint is for one run; --method auto makes many.")


def _train_one(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> list[str]:
    from prompt_serve.training.train import train_prompt

    out: Path = options["out"]
    result = train_prompt(
        name=options["name"] or out.stem,
        on_epoch=lambda record: log.write(record.to_dict()),
        checkpoint=options["checkpoint"],
        **task,
    )
    return _written(result, options, log)


def _train_seeds(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> list[str]:
    return train_seeds(
        seeds=options["seeds"],
        out=options["out"],
        name=options["name"],
        log=log.write,
        stamped=lambda result: _stamped(result, stamp=options["stamp"]),
        **task,
    )


def _train_auto(options: Mapping[str, Any], log: "_Log", task: Mapping[str, Any]) -> list[str]:
    chosen = train_auto(
        max_bytes=options["max_bytes"],
        frontier=options["frontier"],
        candidates=options["candidates"],
        name=options["name"] or options["out"].stem,
        log=log.write,
        **task,
    )
    return [*frontier_report(chosen.candidates), "", *_written(chosen.result, options, log)]


def _written(result: "TrainingResult", options: Mapping[str, Any], log: "_Log") -> list[str]:
    """Write the prompt file; returns the report."""
    from prompt_serve.prompts.prompt_file import write_prompt_file

    log.write({"metrics": dict(result.prompt.metrics), "seconds": dict(result.seconds)})
    data = write_prompt_file(_stamped(result, stamp=options["stamp"]), options["out"])
    return list(_report(result, options["out"], len(data)))


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names: those of the file, over them those of the command line."""
    from prompt_serve.training.config import read_config_file, settings

    values = read_config_file(options["config_file"]) if options["config_file"] else {}
    named = ("method", *settings())
    values |= {key: options[key] for key in named if options[key] is not None}
    match options["templates"]:
        case (template,):
            values |= {"template": template, "templates": ()}
        case (template, *_) as several:
            values |= {"template": template, "templates": several}
    return values


def _stamped(result: "TrainingResult", *, stamp: bool) -> Any:
    from dataclasses import replace
    from datetime import UTC, datetime

    if not stamp:
        return result.prompt
    return replace(result.prompt, created=datetime.now(UTC).isoformat(timespec="seconds"))


class _Log:
    """JSON lines, each on disk as soon as it is known, so that a run can be watched."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "_Log":
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(line) + "\n")


def _report(result: "TrainingResult", out: Path, file_bytes: int) -> Iterable[str]:
    prompt = result.prompt
    images = ", ".join(f"{count} {part}" for part, count in result.images.items())
    yield f"{len(prompt.class_names)} classes; images: {images}"
    yield from (f"Note: {note}" for note in result.notes)
    if result.comparisons:
        yield ""
        yield f"{'accuracy':<12} {'zero-shot':>9} {prompt.method:>9} {'ECE':>7}"
        for part, comparison in result.comparisons.items():
            zero_shot, learned = comparison.zero_shot.accuracy, comparison.prompt
            error = learned.calibration_error
            yield f"{part:<12} {zero_shot:>9.1%} {learned.accuracy:>9.1%} {error:>7.1%}"
        part, comparison = list(result.comparisons.items())[-1]
        yield ""
        yield from _per_class(part, comparison, prompt.class_names, prompt.method)
    yield ""
    if prompt.encodings:
        rate = prompt.training["learning_rate"]
        yield f"learned      {prompt.learned_numbers:,} numbers (learning rate {rate:g})"
    yield f"payload      {prompt.payload_bytes:,} bytes"
    if (prompt.temperature, prompt.unknown_below) != (1.0, 0.0):
        yield f"calibration  temperature {prompt.temperature:.3g}{_threshold(prompt.unknown_below)}"
    yield f"file         {file_bytes:,} bytes, {out}"
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    yield f"seconds      {seconds}"


def _threshold(unknown_below: float) -> str:
    return f", unknown below {unknown_below:.3g}" if unknown_below else ""


def _per_class(
    part: str, comparison: "ZeroShotComparison", class_names: tuple[str, ...], method: str
) -> Iterable[str]:
    width = min(40, max(12, *(len(name) for name in class_names[:CLASSES_SHOWN])))
    yield f"{f'class ({part})':<{width}} {'zero-shot':>9} {method:>9}"
    rows = zip(
        class_names, comparison.zero_shot.per_class, comparison.prompt.per_class, strict=True
    )
    for name, before, after in list(rows)[:CLASSES_SHOWN]:
        yield f"{name[:width]:<{width}} {_percent(before):>9} {_percent(after):>9}"
    if len(class_names) > CLASSES_SHOWN:
        yield f"... and {len(class_names) - CLASSES_SHOWN} more; the prompt file has them all"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
