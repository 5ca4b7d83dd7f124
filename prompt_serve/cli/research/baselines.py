"""``prompt-serve baselines``: zero-shot and adapter baselines on a dataset."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.learning.image_options import (
    column_names,
    device_of,
    feature_cache,
    image_options,
    report_notes,
)
from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.research.baselines import Baseline


@click.command()
@click.argument("dataset", type=UserPath(path_type=str))
@click.option(
    "--backbone", default="embedded", show_default=True,
    help="Frozen CLIP: embedded, MODEL/TAG such as ViT-B-16/openai, MODEL/TAG@FILE or "
    "MODEL@FILE with a checkpoint, or a folder.",
)  # fmt: skip
@click.option(
    "--shots",
    type=int,
    default=16,
    show_default=True,
    help="Training images per class, 0 for all.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True,
    help="Random seed for sampling, augmentation and initialization.",
)  # fmt: skip
@click.option(
    "--fewer-shots-ok", is_flag=True,
    help="Use all images of a class that has fewer than --shots.",
)  # fmt: skip
@click.option(
    "--views", type=int, default=16, show_default=True,
    help="Augmented views per training image; 0 for the plain image only.",
)  # fmt: skip
@click.option(
    "--template", default="a photo of a {}.", show_default=True,
    help="Sentence with {} for the class name, for the zero-shot row and the adapters.",
)  # fmt: skip
@image_options
@json_option
def baselines(**options: Any) -> None:
    """Evaluate zero-shot and adapter baselines on DATASET.

    The baselines are zero-shot, a template ensemble, a linear probe, CLIP-Adapter and Tip-Adapter.
    They use the images that prompt-serve train samples with the same shots and seed. Settings are
    selected on validation images; test images are used once, at the end.

    Example: prompt-serve baselines flowers/ --shots 16 --seed 1
    """
    from prompt_serve.research.baselines import measure_baselines
    from prompt_serve.training.clip.backbone import load_backbone
    from prompt_serve.training.config import make_config
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.train import open_dataset

    names = ("shots", "seed", "fewer_shots_ok", "views", "template")
    config = make_config({"method": "zero-shot", **{name: options[name] for name in names}})
    progress = Progress(quiet=options["as_json"])
    backbone = load_backbone(options["backbone"]).to(device_of(options["device"]))
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
    report_notes(dataset)
    rows = measure_baselines(
        backbone,
        dataset,
        config,
        cache=feature_cache(options),
        workers=options["workers"],
        progress=progress,
    )
    if options["as_json"]:
        print_document([_described(row) for row in rows])
    else:
        click.echo("\n".join(_table(rows)))


def _described(row: "Baseline") -> dict[str, Any]:
    return {
        "name": row.name,
        "learned_numbers": row.learned_numbers,
        "settings": dict(row.settings),
        **{part: evaluation.to_dict() for part, evaluation in row.parts.items()},
    }


def _table(rows: Sequence["Baseline"]) -> Iterable[str]:
    parts = list(rows[0].parts)
    headers = "".join(f" {part:>8}" for part in parts)
    yield f"{'baseline':<14}{headers} {'numbers':>10}  settings"
    for row in rows:
        figures = "".join(f" {row.parts[part].accuracy:>8.1%}" for part in parts)
        settings = ", ".join(f"{name} {value:.3g}" for name, value in row.settings.items())
        yield f"{row.name:<14}{figures} {row.learned_numbers:>10,}  {settings}".rstrip()
