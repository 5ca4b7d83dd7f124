"""``prompt-serve evaluate``: the accuracy of a prompt file on a dataset."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.learning.evaluation_report import write_report
from prompt_serve.cli.learning.image_options import (
    column_names,
    device_of,
    feature_cache,
    image_options,
    report_notes,
)
from prompt_serve.cli.learning.multi_label import evaluate_multi_label
from prompt_serve.cli.learning.prompt_backbone import find_backbone
from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.prompts.prompt_file import Prompt
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.data.dataset import ImageSet, Split
    from prompt_serve.training.without_torch.evaluation import Evaluation


@click.command()
@click.argument("prompt_file", metavar="PROMPT", type=UserPath())
@click.argument("dataset", type=UserPath(path_type=str))
@click.option(
    "--part", type=click.Choice(["train", "val", "test"]),
    help="Part of DATASET to evaluate, all its images. [default: test, or the only part]",
)  # fmt: skip
@click.option(
    "--backbone",
    help="Frozen CLIP, as in prompt-serve train. [default: the backbone of PROMPT, looked for "
    "where it was at training, here, and beside PROMPT]",
)
@click.option(
    "--class-names", metavar="A,B,C",
    help="Class names to use instead of the file's, with the same learned context.",
)  # fmt: skip
@click.option(
    "--new-classes", is_flag=True,
    help="Use the class names of DATASET instead of the file's, with the same learned context.",
)  # fmt: skip
@click.option("--fewer-classes-ok", is_flag=True, help="Allow classes without images in DATASET.")
@image_options
@click.option(
    "--report", type=OutputFile(),
    help="HTML file to write: accuracy, confusions, mistakes, thresholds and calibration.",
)  # fmt: skip
@json_option
def evaluate(**options: Any) -> None:
    """Measure the accuracy of the prompt file PROMPT on the images of DATASET.

    DATASET has one of the formats of prompt-serve train. Its classes are matched with the file's by
    name, in any order.

    Example: prompt-serve evaluate flowers.safetensors flowers/ --part test
    """
    from prompt_serve.prompts.prompt_file import read_prompt_file

    prompt = read_prompt_file(options["prompt_file"])
    if prompt.multi_label:
        evaluate_multi_label(prompt, options)
        return
    from prompt_serve.training.class_sets import relabeled
    from prompt_serve.training.clip.backbone import load_backbone
    from prompt_serve.training.data.feature_provider import image_data
    from prompt_serve.training.evaluate import evaluate_prompt
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.without_torch.evaluation import check_backbone

    if options["class_names"] and options["new_classes"]:
        raise click.UsageError("--class-names and --new-classes exclude each other.")
    progress = Progress(quiet=options["as_json"])
    cache = feature_cache(options)
    name = options["backbone"] or find_backbone(prompt.backbone, options["prompt_file"])
    backbone = load_backbone(name)
    check_backbone(prompt, backbone.ref, backbone.former_fingerprint)
    backbone.to(device_of(options["device"]))
    split = _dataset(options, progress)
    part, images = _part(split, options["part"], options["dataset"])
    prompt = _with_requested_classes(prompt, backbone, split, options)
    images = relabeled(images, prompt.class_names, fewer_ok=options["fewer_classes_ok"])
    with progress.bar(f"encoding {part}", len(images), "img") as advance:
        data = image_data(
            images,
            backbone,
            as_pixels=prompt.image is not None,
            cache=cache,
            workers=options["workers"],
            advance=advance,
        )
    report = None
    if options["report"]:
        report = write_report(options, prompt, backbone, split, part, images, data)
    description = _description(prompt, part, evaluate_prompt(prompt, backbone, data))
    if options["as_json"]:
        print_document(description | ({"report": str(report)} if report else {}))
    else:
        click.echo("\n".join(_lines(description)))
        if report:
            click.echo(f"\nreport             {report}")


def _dataset(options: Mapping[str, Any], progress: Any) -> "Split":
    from prompt_serve.training.data.loading import check_images, read_dataset

    checked = check_images(
        on_bad_image=options["on_bad_image"], workers=options["workers"], progress=progress
    )
    split = read_dataset(
        options["dataset"],
        images=options["images"],
        columns=column_names(options),
        rename=options["renames"],
        repairs=(checked,),
        workers=options["workers"],
        progress=progress,
    )
    report_notes(split)
    return split


def _part(split: "Split", requested: str | None, source: str) -> tuple[str, "ImageSet"]:
    from prompt_serve.errors import DatasetInvalid

    parts = split.parts
    name = requested or ("test" if len(parts) > 1 else next(iter(parts)))
    if name not in parts:
        raise DatasetInvalid(
            f"{source} has no part {name!r}; name one it has with --part: {', '.join(parts)}."
        )
    return name, parts[name]


def _with_requested_classes(
    prompt: "Prompt", backbone: "Backbone", split: "Split", options: Mapping[str, Any]
) -> "Prompt":
    from prompt_serve.training.class_sets import with_classes

    if options["new_classes"]:
        return with_classes(prompt, split.class_names, backbone)
    if options["class_names"]:
        names = [name.strip() for name in options["class_names"].split(",")]
        return with_classes(prompt, names, backbone)
    return prompt


def _description(prompt: "Prompt", part: str, evaluation: "Evaluation") -> dict[str, Any]:
    names = prompt.class_names
    return {
        "name": prompt.name,
        "method": prompt.method,
        "part": part,
        "images": evaluation.images,
        "accuracy": evaluation.accuracy,
        "calibration_error": evaluation.calibration_error,
        "unknown": evaluation.unknown,
        "known_accuracy": evaluation.known_accuracy,
        "per_class": dict(zip(names, evaluation.per_class, strict=True)),
    }


def _lines(description: Mapping[str, Any]) -> Iterable[str]:
    yield f"{'prompt':<18} {description['name']} ({description['method']})"
    yield f"{'images':<18} {description['images']:,} of part {description['part']}"
    yield f"{'accuracy':<18} {description['accuracy']:.1%}"
    yield f"{'calibration error':<18} {description['calibration_error']:.1%}"
    if description["unknown"]:
        known = description["known_accuracy"]
        yield f"{'unknown':<18} {description['unknown']:.1%}"
        yield f"{'accuracy of known':<18} {'-' if known is None else f'{known:.1%}'}"
    yield ""
    width = min(40, max(18, *(len(name) for name in description["per_class"])))
    yield f"{'class':<{width}} accuracy"
    for name, share in description["per_class"].items():
        yield f"{name[:width]:<{width}} {'-' if share is None else f'{share:.1%}':>8}"
