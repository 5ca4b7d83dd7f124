"""``prompt-serve export``: export a backbone to a bundle for the service."""

import time
from importlib.util import find_spec
from pathlib import Path

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.output_file import OutputFolder
from prompt_serve.cli.user_path import UserPath
from prompt_serve.types import Precision


@click.command(
    epilog="Example: prompt-serve export embedded -o bundles/embedded",
    context_settings={"max_content_width": 100},
)
@click.argument("backbone")
@click.option(
    "-o",
    "--out",
    required=True,
    type=OutputFolder(replaced=True),
    help="Folder to write. An existing bundle is replaced in one step after the new one has passed "
    "its checks; a folder with other files is rejected.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of the image encoder. int8 is two to three times as fast on CPUs (vision "
    "transformers), bf16 twice on CPUs that have it (needs OpenVINO), fp16 is for CUDA. The text "
    "encoder is always fp32.",
)
@click.option(
    "--openvino/--no-openvino",
    default=None,
    help="Check the image encoder in OpenVINO as well, and write its graph of an int8 bundle. "
    "[default: where the extra openvino, for int8 openvino-int8, is installed]",
)
@click.option(
    "--calibrate",
    type=UserPath(exists=True),
    metavar="FOLDER",
    help="Images that the int8 graph for OpenVINO is quantized with, best those you will classify. "
    "[default: shipped images]",
)
@json_option
def export(
    backbone: str,
    out: Path,
    precision: Precision,
    openvino: bool | None,
    calibrate: Path | None,
    as_json: bool,
) -> None:
    """Export a CLIP backbone to a bundle, which the service runs without PyTorch.

    A bundle is a folder with an image encoder and a text encoder (ONNX), token embeddings, a
    tokenizer and a manifest. The ONNX encoders are compared with PyTorch; if they differ, nothing
    is written.

    BACKBONE is one of

    \b
      embedded                  the small CLIP that ships with prompt-serve
      embedded-vit              its variant with a small ViT, for image-branch prompts
      ViT-B-16/openai           an open_clip model and pretrained tag (downloaded once)
      ViT-B-16/openai@FILE      the weights of that tag from a checkpoint file
      ViT-B-16@FILE             an open_clip model with other weights from a checkpoint file
      ViT-B-16/random           an open_clip model with random weights, to measure speed
      path/to/folder            a folder of open_clip or prompt-serve
    """
    from prompt_serve.export.build import check_target, export_bundle
    from prompt_serve.training.clip.backbone import load_backbone

    start = time.perf_counter()
    check_target(out)
    loaded = load_backbone(backbone)
    manifest = export_bundle(
        loaded,
        out,
        precision=precision,
        openvino=_installed(precision) if openvino is None else openvino,
        calibrate=calibrate,
        report=lambda line: click.echo(line, err=as_json),
    )
    seconds = time.perf_counter() - start
    if as_json:
        sizes = {name: file.size_bytes for name, file in manifest.files.items()}
        print_document(
            {
                "backbone": manifest.backbone.model_dump(mode="json"),
                "precision": precision,
                "folder": str(out),
                "files": sizes,
                "parity": manifest.parity,
                "seconds": round(seconds, 3),
            }
        )
        return
    for name, file in manifest.files.items():
        click.echo(f"{name:<26}{file.size_bytes / 1e6:>9.1f} MB")
    click.echo(f"Exported {manifest.backbone.id} ({precision}) to {out} in {seconds:.0f} s.")


def _installed(precision: Precision) -> bool:
    """Return True where OpenVINO is installed, and what quantizes for it if that is needed."""
    needed = ("openvino", "nncf") if precision == "int8" else ("openvino",)
    return all(find_spec(name) is not None for name in needed)
