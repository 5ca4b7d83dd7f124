"""Make the shipped backbones ready to run: ONNX graphs that read model.safetensors, a manifest.

`python -m pretraining.graphs` writes them to `prompt_serve/assets`. The same weights and
versions of torch and onnxscript give the same bytes.
"""

import json
import shutil
import tempfile
from pathlib import Path

import onnx

from pretraining.workdir import ASSETS, WorkDir
from prompt_serve.bundle import (
    BUNDLE_FORMAT,
    IMAGE_ENCODER,
    IMAGE_ROWS,
    MANIFEST,
    PROMPTED_IMAGE_ENCODER,
    SHIPPED,
    TEXT_ENCODER,
    TOKENIZER,
    Manifest,
    digest_file,
    manifest_json,
)
from prompt_serve.export.build import image_tower_size
from prompt_serve.export.graphs import (
    image_graph,
    prompted_image_graph,
    row_graph,
    text_graph,
)
from prompt_serve.export.parity import check_parity
from prompt_serve.export.stored_weights import read_stored, size_inside, with_stored_weights
from prompt_serve.training.clip.backbone import Backbone, load_backbone

WEIGHTS = "model.safetensors"
MOST_INSIDE = 256 * 1024  # bytes of weights in the graphs of one backbone


def make_bundle(name: str, folder: Path, *, assets: Path = ASSETS) -> None:
    """Write the graphs, the tokenizer and the manifest of a shipped backbone.

    Args:
        name: of the backbone, one of SHIPPED.
        folder: where to write; a copy of the weights is in it.
        assets: the shipped backbones.
    """
    backbone = load_backbone(name)
    text_from = json.loads((assets / name / "config.json").read_text()).get("text_from")
    graphs = {IMAGE_ENCODER: image_graph(backbone)}
    if backbone.takes_image_vectors:
        graphs[PROMPTED_IMAGE_ENCODER] = prompted_image_graph(backbone)
        graphs[IMAGE_ROWS] = row_graph(backbone)
    if text_from is None:
        graphs[TEXT_ENCODER] = text_graph(backbone)
        (folder / TOKENIZER).write_text(backbone.tokenizer.to_json(), encoding="utf-8")
    stored = read_stored(folder / WEIGHTS)
    graphs = {file: with_stored_weights(graph, stored, WEIGHTS) for file, graph in graphs.items()}
    inside = sum(size_inside(graph) for graph in graphs.values())
    if inside > MOST_INSIDE:
        raise ValueError(
            f"The graphs of {name} hold {inside:,} bytes of weights that are not in {WEIGHTS}; "
            f"at most {MOST_INSIDE:,} may ship. An exporter may fold other weights than before."
        )
    for file, graph in graphs.items():
        onnx.save(graph, folder / file)
    text_folder = folder if text_from is None else assets / text_from
    check_parity(backbone, folder / IMAGE_ENCODER, text_folder / TEXT_ENCODER, report=print)
    manifest = _manifest(backbone, folder, text_from)
    (folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")


def write_graphs(work: WorkDir | None = None) -> None:
    """Write the graphs of all shipped backbones beside their weights."""
    for name in SHIPPED:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            shutil.copy(ASSETS / name / WEIGHTS, folder)
            make_bundle(name, folder)
            for path in folder.iterdir():
                shutil.copyfile(path, ASSETS / name / path.name)


def _manifest(backbone: Backbone, folder: Path, text_from: str | None) -> Manifest:
    """Return the manifest, without what differs between two machines or two releases."""
    return Manifest(
        format_version=BUNDLE_FORMAT,
        backbone=backbone.ref,
        precision="fp32",
        preprocessing=backbone.preprocessing,
        logit_scale=backbone.logit_scale,
        causal_text=backbone.text_tower.causal,
        text_layers=backbone.text_tower.layers,
        image_tower=image_tower_size(backbone),
        parity={},
        files={path.name: digest_file(path) for path in sorted(folder.iterdir())},
        created="",
        tool_version="",
        weights=WEIGHTS,
        text_from=text_from,
    )


if __name__ == "__main__":
    write_graphs()
