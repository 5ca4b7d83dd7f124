"""``prompt-serve export-task``: write a task as one ONNX file."""

import json
from pathlib import Path
from typing import cast, get_args

import click

from prompt_serve.bundle import SHIPPED, Bundle, open_bundle, shipped_bundle
from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import BundleInvalid, DependencyMissing, counted
from prompt_serve.types import Precision


@click.command(
    "export-task",
    epilog="Example: prompt-serve export-task pets.safetensors -o pets.onnx",
    context_settings={"max_content_width": 100},
)
@click.argument("prompt", type=UserPath())
@click.option("-o", "--out", required=True, type=OutputFile(), help="ONNX file to write.")
@click.option(
    "--bundle",
    "folder",
    type=UserPath(),
    help="Bundle of the prompt's backbone, from prompt-serve export.  [default: the shipped one]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8"]),
    help="Precision of the image encoder; int8 makes the file of a vision transformer four times "
    "smaller.  [default: the bundle's]",
)
@json_option
def export_task(
    prompt: Path, out: Path, folder: Path | None, precision: str | None, as_json: bool
) -> None:
    """Write a task as one ONNX file for browsers, phones and programs without prompt-serve.

    The file holds the image encoder, the class features of PROMPT and its scoring. It takes RGB
    pixels and returns labels and probabilities; class names and preprocessing are in its metadata.
    It is compared with the service's own scoring; if they differ, nothing is written.
    """
    try:
        from prompt_serve.export.task.build import export_task as write_task
        from prompt_serve.export.task.encoder import TaskPrecision
    except ImportError as error:
        raise DependencyMissing(
            f"export-task needs onnx and onnxruntime ({error}): pip install 'prompt-serve[train]'"
        ) from error
    from prompt_serve.prompts.prompt_file import read_prompt_file

    backbone = read_prompt_file(prompt).backbone.id
    bundle = _bundle(backbone, folder)
    own: Precision | str = bundle.manifest.precision
    chosen = precision or (own if own in get_args(TaskPrecision) else "fp32")
    exported = write_task(
        prompt.read_bytes(),
        bundle,
        out,
        precision=cast(TaskPrecision, chosen),
        report=lambda line: click.echo(line, err=as_json),
    )
    names = json.loads(exported.metadata["class_names"])
    if as_json:
        print_document(
            {
                "file": str(out),
                "size_bytes": exported.size_bytes,
                "name": exported.metadata["name"],
                "version": exported.metadata["version"],
                "class_names": names,
                "precision": chosen,
                "parity": exported.parity,
            }
        )
        return
    size = exported.size_bytes / 1e6
    click.echo(f"Wrote {out}: {counted(len(names), 'class')}, {chosen}, {size:.1f} MB.")


def _bundle(backbone: str, folder: Path | None) -> Bundle:
    if folder is not None:
        return open_bundle(folder)
    if backbone in SHIPPED:
        return open_bundle(shipped_bundle(backbone))
    raise BundleInvalid(
        f"The prompt was learned on {backbone!r}, which is not shipped. Export it once with: "
        f"prompt-serve export {backbone} -o bundles/backbone. Then add --bundle bundles/backbone."
    )
