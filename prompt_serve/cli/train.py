"""``prompt-serve train``: from a folder of images to a prompt file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from prompt_serve.training.config import TrainConfig
    from prompt_serve.training.run import Comparison, TrainingResult

CLASSES_SHOWN = 40
# Options that are settings of the same name in TrainConfig.
SETTINGS = (
    "method",
    "shots",
    "seed",
    "fewer_shots_ok",
    "n_ctx",
    "init",
    "init_std",
    "class_position",
    "class_specific",
    "rank",
    "dropout",
    "frozen_init",
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "views",
)


def _learning_rate(
    context: click.Context, option: click.Parameter, value: str | None
) -> float | str | None:
    if value is None or value == "auto":
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number nor 'auto'.") from error


def _renames(
    context: click.Context, option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, str]:
    renames = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise click.BadParameter(f"{pair!r} is not OLD=NEW, as in roses=rose.")
        renames[old] = new
    return renames


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True,
    help="Prompt file to write, such as pets.safetensors.",
)  # fmt: skip
@click.option(
    "--backbone", default="embedded", show_default=True,
    help="Frozen CLIP: embedded, MODEL/TAG as in ViT-B-16/openai, or MODEL@FILE with a checkpoint.",
)  # fmt: skip
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), default=None,
    help="TOML file with settings by their long names (learning_rate = 0.2); options win over it.",
)  # fmt: skip
@click.option(
    "--method", help="What is learned: dip, coop, or zero-shot for nothing. [default: dip]"
)
@click.option("--shots", type=int, help="Training images a class, 0 for all. [default: 16]")
@click.option(
    "--seed", type=int, help="Of the draw of images, their views and all numbers. [default: 1]"
)
@click.option(
    "--fewer-shots-ok/--no-fewer-shots-ok", default=None,
    help="Where a class has fewer images than --shots, take all it has. [default: an error]",
)  # fmt: skip
@click.option(
    "--template", "templates", multiple=True,
    help="Sentence with {} for the class name; for zero-shot several, whose features are "
    "averaged. [default: 'a photo of a {}.']",
)  # fmt: skip
@click.option(
    "--class-name", "renames", multiple=True, callback=_renames, metavar="OLD=NEW",
    help="Call a class otherwise than its folder, as in roses=rose. May be repeated.",
)  # fmt: skip
@click.option(
    "--images", type=click.Path(path_type=Path),
    help="Folder that the paths in a split_zhou_*.json start from. [default: found beside it]",
)  # fmt: skip
@click.option("--epochs", type=int, help="Times the images are gone through. [default: 50]")
@click.option("--batch-size", type=int, help="Images a step. [default: 32]")
@click.option(
    "--learning-rate", callback=_learning_rate,
    help="Of SGD, or auto to choose by validation. [default: 0.2 for dip, 0.002 for coop]",
)  # fmt: skip
@click.option("--momentum", type=float, help="Of SGD, 0 to 1. [default: 0.9]")
@click.option("--weight-decay", type=float, help="Of SGD. [default: 0.0005]")
@click.option(
    "--views", type=int,
    help="Augmented views an image to learn from; 0 for the plain image only. [default: 16]",
)  # fmt: skip
@click.option(
    "--n-ctx", type=int, help="Learned vectors. [default: as many as the template has tokens]"
)
@click.option(
    "--init", help="What CoOp starts from: template (its words) or random. [default: template]"
)
@click.option("--init-std", type=float, help="Spread of random initial numbers. [default: 0.02]")
@click.option(
    "--class-position",
    help="Of the class name among the learned vectors: end, middle or front. [default: end]",
)
@click.option(
    "--class-specific/--no-class-specific", default=None,
    help="CoOp: a context for every class. [default: one for all]",
)  # fmt: skip
@click.option("--rank", type=int, help="DIP: rank of the learned change. [default: 1]")
@click.option(
    "--dropout", type=float, help="DIP: share of the change left out a step. [default: 0]"
)
@click.option(
    "--frozen-init/--no-frozen-init", default=None,
    help="DIP: add the change to the template's words, or to nothing. [default: the words]",
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
    "--cache", "cache_folder", type=click.Path(path_type=Path),
    help="Folder that keeps image features. [default: features in $PROMPT_SERVE_CACHE, "
    "or ~/.cache/prompt-serve/features]",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Keep no image features.")
@click.option(
    "--device", default="cpu", show_default=True,
    help="Where the towers run: cpu, cuda, cuda:1, or auto for cuda if there is one.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), default=4, show_default=True,
    help="Threads that decode images.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bars and no report.")
def train(**options: Any) -> None:
    """Learn a compact prompt for DATASET and write it to a prompt file.

    DATASET is a folder with one folder of images a class (or with train, val and test folders of
    such), a CSV or Parquet table with the columns path, label and perhaps split, or CoOp's
    split_zhou_*.json. Validation images are held out where there are none; test images are only
    looked at once, at the end.

    Example: prompt-serve train flowers/ --method dip --shots 16 --seed 1 --out flowers.safetensors
    """
    from prompt_serve.prompt_file import write_prompt_file
    from prompt_serve.training.backbone import load_backbone
    from prompt_serve.training.features import FeatureCache
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.run import open_dataset, train_prompt

    if options["out"].is_dir():
        raise click.BadParameter(f"{options['out']} is a folder; name a file in it.")
    config = _config(options)
    progress = Progress(quiet=options["quiet"])
    backbone = load_backbone(options["backbone"]).to(_device(options["device"]))
    dataset = open_dataset(
        options["dataset"],
        backbone,
        config,
        images=options["images"],
        rename=options["renames"],
        workers=options["workers"],
        progress=progress,
    )
    out: Path = options["out"]
    with _Log(options["log_file"]) as log:
        result = train_prompt(
            backbone,
            dataset,
            config,
            name=options["name"] or out.stem,
            cache=None if options["no_cache"] else FeatureCache(options["cache_folder"]),
            workers=options["workers"],
            progress=progress,
            on_epoch=lambda record: log.write(record.to_dict()),
        )
        log.write({"metrics": dict(result.prompt.metrics), "seconds": dict(result.seconds)})
    data = write_prompt_file(_stamped(result, stamp=options["stamp"]), out)
    if not options["quiet"]:
        click.echo("\n".join(_report(result, out, len(data))))


def _config(options: Mapping[str, Any]) -> "TrainConfig":
    from prompt_serve.training.config import make_config, read_config_file

    settings = read_config_file(options["config_file"]) if options["config_file"] else {}
    settings |= {key: options[key] for key in SETTINGS if options[key] is not None}
    match options["templates"]:
        case (template,):
            settings |= {"template": template, "templates": ()}
        case (template, *_) as several:
            settings |= {"template": template, "templates": several}
    return make_config(settings)


def _device(name: str) -> str:
    import torch

    from prompt_serve.errors import ConfigInvalid

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise ConfigInvalid(
            "--device asks for CUDA, but torch finds none. Leave it out for the CPU."
        )
    return name


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
        yield f"{'accuracy':<12} {'zero-shot':>9} {prompt.method:>9}"
        for part, comparison in result.comparisons.items():
            zero_shot, learned = comparison.zero_shot.accuracy, comparison.prompt.accuracy
            yield f"{part:<12} {zero_shot:>9.1%} {learned:>9.1%}"
        part, comparison = list(result.comparisons.items())[-1]
        yield ""
        yield from _per_class(part, comparison, prompt.class_names, prompt.method)
    yield ""
    if prompt.text is not None:
        rate = prompt.training["learning_rate"]
        yield f"learned      {prompt.learned_numbers:,} numbers (learning rate {rate:g})"
    yield f"payload      {prompt.payload_bytes:,} bytes"
    yield f"file         {file_bytes:,} bytes, {out}"
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    yield f"seconds      {seconds}"


def _per_class(
    part: str, comparison: "Comparison", class_names: tuple[str, ...], method: str
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
