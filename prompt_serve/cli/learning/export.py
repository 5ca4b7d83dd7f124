"""``prompt-serve export``: make a bundle that the service can serve."""

import time
from pathlib import Path
from typing import cast

import click

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
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to make. A bundle that is there already is replaced in one step, once the new "
    "one has passed its checks; a folder with anything else in it is refused.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the image encoder: int8 is about twice as fast on CPUs (vision transformers), "
    "fp16 is for CUDA. The text encoder is always fp32.",
)
def export(backbone: str, out: Path, precision: str) -> None:
    """Export BACKBONE, a frozen CLIP, to a folder that the service runs without PyTorch.

    The folder holds an image and a text encoder (ONNX), the token embeddings, the tokenizer and a
    manifest. The encoders are compared with PyTorch first; if they differ, nothing is written.

    BACKBONE is one of

    \b
      embedded                  the small CLIP that ships with prompt-serve
      embedded-vit              the same with a small ViT, for prompts in the image branch
      ViT-B-16/openai           an open_clip model and pretrained tag (downloaded once)
      ViT-B-16@weights.pt       an open_clip model with a checkpoint from disk
      ViT-B-16/random           random weights, to measure speed
      path/to/folder            config.json, model.safetensors and merges
    """
    from prompt_serve.export.build import export_bundle
    from prompt_serve.export.quiet import quiet_libraries
    from prompt_serve.training.clip.backbone import load_backbone

    start = time.perf_counter()
    with quiet_libraries():
        loaded = load_backbone(backbone)
    manifest = export_bundle(loaded, out, precision=cast(Precision, precision), report=click.echo)
    for name, file in manifest.files.items():
        click.echo(f"{name:<22}{file.size_bytes / 1e6:>9.1f} MB")
    seconds = time.perf_counter() - start
    click.echo(f"{manifest.backbone.id} ({precision}) is in {out}, made in {seconds:.0f} s")
