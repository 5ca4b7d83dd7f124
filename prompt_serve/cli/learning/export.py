"""``prompt-serve export``: export a backbone to a bundle for the service."""

import time
from pathlib import Path
from typing import cast

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.output_file import OutputFolder
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
    type=click.Choice(["fp32", "int8", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of the image encoder. int8 is about twice as fast on CPUs (vision "
    "transformers), fp16 is for CUDA. The text encoder is always fp32.",
)
@json_option
def export(backbone: str, out: Path, precision: str, as_json: bool) -> None:
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
        precision=cast(Precision, precision),
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
                "seconds": round(seconds, 3),
            }
        )
        return
    for name, file in manifest.files.items():
        click.echo(f"{name:<22}{file.size_bytes / 1e6:>9.1f} MB")
    click.echo(f"Exported {manifest.backbone.id} ({precision}) to {out} in {seconds:.0f} s.")
