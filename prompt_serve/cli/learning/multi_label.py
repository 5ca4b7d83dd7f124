"""``prompt-serve train --multi-label``, and ``evaluate`` of what it writes."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from prompt_serve.cli.facts import Report, print_document
from prompt_serve.cli.learning.image_options import column_names, device_of, feature_cache
from prompt_serve.cli.learning.select_method import AUTO_METHOD, MAX_BYTES
from prompt_serve.cli.learning.train_report import training_document
from prompt_serve.cli.learning.train_without_torch import (
    AUTO_WIDTHS,
    CLASS_VECTORS,
    open_encoders,
    torch_is_missing,
)
from prompt_serve.cli.output_file import save
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.label_measures import LabelEvaluation
    from prompt_serve.prompts.prompt_file import Prompt
    from prompt_serve.training.data.features import ImageEncoder
    from prompt_serve.training.multi_label.train import MultiLabelResult

LABELS_SHOWN = 40
_IMAGE_OPTIONS = {
    "renames", "image_column", "label_column", "cache_folder", "no_cache", "device", "workers",
}  # fmt: skip
_TRAIN_OPTIONS = _IMAGE_OPTIONS | {
    "dataset", "out", "multi_label", "backbone", "method", "seed", "bits", "max_bytes", "name",
    "sign", "stamp", "log_file", "quiet", "as_json",
    "track", "track_uri", "track_experiment", "track_dir", "track_run",
}  # fmt: skip
_EVALUATE_OPTIONS = _IMAGE_OPTIONS | {"prompt_file", "dataset", "part", "backbone", "as_json"}


def learn_multi_label(
    options: Mapping[str, Any],
    log: Callable[[Mapping[str, Any]], None],
    stamped: Callable[["MultiLabelResult"], "Prompt"],
) -> Report:
    """Learn a multi-label task with the options of the command, and write its prompt file.

    Args:
        options: of ``train``.
        log: writes a line of the log.
        stamped: returns the prompt to write.

    Returns:
        What to print.
    """
    from prompt_serve.prompts.prompt_file import write_prompt_file
    from prompt_serve.training.multi_label.dataset import read_multi_label
    from prompt_serve.training.multi_label.train import MultiLabelRun, train_multi_label
    from prompt_serve.training.progress import Progress

    method = options["method"] or AUTO_METHOD
    if method not in (AUTO_METHOD, CLASS_VECTORS):
        raise click.UsageError(
            f"--multi-label learns class vectors; omit --method {method}, or train one task per "
            f"label."
        )
    _refuse_others("--multi-label", _TRAIN_OPTIONS)
    by_itself = method == AUTO_METHOD
    run = MultiLabelRun(
        bits=AUTO_WIDTHS if by_itself else (options["bits"] or AUTO_WIDTHS[0],),
        max_bytes=options.get("max_bytes", MAX_BYTES) if by_itself else None,
        **({} if options["seed"] is None else {"seed": options["seed"]}),
    )
    progress = Progress(quiet=options["quiet"])
    encoder = _open_encoder(options["backbone"], options["device"])
    dataset = read_multi_label(
        options["dataset"],
        columns=column_names(options),
        rename=options["renames"],
        workers=options["workers"],
        progress=progress,
    )
    out: Path = options["out"]
    result = train_multi_label(
        encoder,
        dataset,
        run,
        name=options["name"] or out.stem,
        cache=feature_cache(options),
        workers=options["workers"],
        progress=progress,
    )
    log({"metrics": dict(result.prompt.metrics), "seconds": dict(result.seconds)})
    path = save(out, partial(write_prompt_file, stamped(result), signed=options["sign"]))
    file_bytes = path.stat().st_size
    return Report(
        training_document(result, path, file_bytes), list(_train_report(result, path, file_bytes))
    )


def evaluate_multi_label(prompt: "Prompt", options: Mapping[str, Any]) -> None:
    """Measure a multi-label prompt with the options of ``evaluate``, and print the measures."""
    from prompt_serve.errors import DatasetInvalid
    from prompt_serve.training.multi_label.dataset import matched, read_multi_label
    from prompt_serve.training.multi_label.train import evaluate_on, part_features
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.without_torch.evaluation import check_backbone

    if options["report"]:
        raise click.UsageError(
            "--report shows one class per image; of a multi-label task, --json has all measures."
        )
    _refuse_others("A multi-label task", _EVALUATE_OPTIONS)
    encoder = _open_encoder(options["backbone"] or prompt.backbone.id, options["device"])
    check_backbone(prompt, encoder.ref)
    progress = Progress(quiet=options["as_json"])
    dataset = read_multi_label(
        options["dataset"],
        columns=column_names(options),
        rename=options["renames"],
        to_learn=False,
        workers=options["workers"],
        progress=progress,
    )
    parts = matched(dataset, prompt.class_names)
    name = options["part"] or ("test" if "test" in parts else next(iter(parts), "train"))
    if name not in parts:
        raise DatasetInvalid(
            f"{options['dataset']} has no images of part {name!r}; name one it has with --part: "
            f"{', '.join(parts) or 'none'}."
        )
    features = part_features(
        name,
        parts[name],
        encoder,
        cache=feature_cache(options),
        workers=options["workers"],
        progress=progress,
    )
    found = evaluate_on(prompt, features, parts[name].labels)
    if options["as_json"]:
        document = {"name": prompt.name, "method": prompt.method, "part": name, **found.to_dict()}
        for listed in ("average_precision", "f1", "positives"):
            document[listed] = dict(zip(prompt.class_names, document[listed], strict=True))
        print_document(document)
        return
    click.echo(f"{'prompt':<18} {prompt.name} ({prompt.method})")
    click.echo(f"{'images':<18} {found.images:,} of part {name}")
    click.echo("\n".join(_measures({name: found}, prompt.class_names)))


def _refuse_others(what: str, allowed: set[str]) -> None:
    """Raise UsageError if the command line has options that do not apply."""
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.get_params(context)
        if parameter.name not in allowed
        and context.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{what} does not take {', '.join(given)}.")


def _open_encoder(backbone: str, device: str) -> "ImageEncoder":
    if torch_is_missing():
        return open_encoders(backbone, device)
    from prompt_serve.training.clip.backbone import load_backbone

    return load_backbone(backbone).to(device_of(device))


def _train_report(result: "MultiLabelResult", out: Path, file_bytes: int) -> Iterable[str]:
    prompt = result.prompt
    images = ", ".join(f"{count} {part}" for part, count in result.images.items())
    yield f"{counted(len(prompt.class_names), 'label')}; images: {images}"
    yield from (f"Note: {note}" for note in result.notes)
    yield from _measures(result.evaluations, prompt.class_names)
    yield ""
    yield (
        f"learned      {counted(prompt.learned_numbers, 'number')} (shrinkage "
        f"{prompt.training['shrinkage']:g})"
    )
    yield f"payload      {counted(prompt.payload_bytes, 'byte')}"
    yield f"file         {counted(file_bytes, 'byte')}, {out}"
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    yield f"seconds      {seconds}"


def _measures(
    evaluations: Mapping[str, "LabelEvaluation"], class_names: tuple[str, ...]
) -> Iterable[str]:
    """Yield a table of all parts, and one of the labels of the last part."""
    yield ""
    width = max(12, *map(len, evaluations))
    yield f"{'part':<{width}} {'mAP':>7} {'micro F1':>9} {'macro F1':>9} {'unknown':>8}"
    for part, found in evaluations.items():
        yield (
            f"{part:<{width}} {_percent(found.mean_average_precision):>7} "
            f"{_percent(found.micro_f1):>9} {_percent(found.macro_f1):>9} "
            f"{_percent(found.unknown):>8}"
        )
    part, found = list(evaluations.items())[-1]
    title = f"label ({part})"
    yield ""
    width = min(40, max(len(title), *map(len, class_names[:LABELS_SHOWN])))
    yield f"{title:<{width}} {'positives':>9} {'AP':>7} {'F1':>7}"
    for name, label in list(zip(class_names, found.labels, strict=True))[:LABELS_SHOWN]:
        yield (
            f"{name[:width]:<{width}} {label.positives:>9,} "
            f"{_percent(label.average_precision):>7} {_percent(label.f1):>7}"
        )
    if len(class_names) > LABELS_SHOWN:
        yield f"... and {len(class_names) - LABELS_SHOWN} more; --json has them all"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
