"""The table of movements in ``docs/methods.md``: how far each method's vectors go at one rate.

Every method takes 60 steps at the same learning rate on the same images, in CoOp's schedule. The
movement of a block is ``|P - P_start| / |P_start|`` of its M x D vectors, folded as the prompt file
holds them. A cell has the first block and, behind the slash, the median of the deeper ones; text
tower first, then the image tower. ADAPT's are all rows, also those that are pruned.

    python -m benchmarks.movements --document docs/methods.md

``ViT-B-16/random`` has random weights at the widths of CLIP ViT-B/16. Its image tower runs at every
step: half an hour on two cores.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods_table import put
from prompt_serve.errors import BackboneUnsupported
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.data.image_batches import ImageData, image_batches
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.loop import Run
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.adapt import Adapt

STEPS, EPOCHS = 60, 6  # the first epoch is CoOp's warm-up
BACKBONES = ("ViT-B-16/random", "embedded", "embedded-vit")
SHOTS = 16
ROWS: dict[str, dict[str, Any]] = {
    "CoOp": {"method": "coop"},
    "CoOp, 16 random vectors": {"method": "coop", "n_ctx": 16, "init": "random"},
    "CoOp, 4 blocks": {"method": "coop", "depth": 4},
    "DIP": {"method": "dip"},
    "DIP, rank 4": {"method": "dip", "rank": 4},
    "DIP, 4 blocks": {"method": "dip", "depth": 4},
    "DIP, no frozen words": {"method": "dip", "frozen_init": False},
    "QCoOp, 1 bit": {"method": "qcoop"},
    "QCoOp, 16 at 4 bits": {"method": "qcoop", "n_ctx": 16, "init": "random", "bits": 4},
    "KgCoOp": {"method": "kgcoop"},
    "ProGrad": {"method": "prograd"},
    "PromptSRC": {"method": "promptsrc"},
    "DIP, image branch": {"method": "dip", "branch": "image", "n_ctx": 4},
    "VPT": {"method": "vpt"},
    "IVLP": {"method": "ivlp"},
    "MaPLe": {"method": "maple"},
    "DIP+MaPLe": {"method": "dip-maple"},
    "QMaPLe": {"method": "qmaple"},
    "ADAPT": {"method": "adapt"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--images", type=Path, default=Path("../shared/data/flowers"))
    parser.add_argument("--relative-rate", type=float, default=0.003)
    parser.add_argument("--absolute-rate", type=float, default=0.002)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--document", type=Path, help="Markdown file to update")
    options = parser.parse_args(arguments)
    rates = {"absolute": options.absolute_rate, "relative": options.relative_rate}
    columns = [
        (f"{name}, {unit}", column(load_backbone(name), options.images, options.rows, unit, rate))
        for name in options.backbones
        for unit, rate in rates.items()
    ]
    lines = "\n".join(table(options.rows, columns))
    print(lines)
    if options.document:
        put(options.document, "movements", lines)


def table(rows: Sequence[str], columns: Sequence[tuple[str, dict[str, str]]]) -> Iterable[str]:
    yield f"| method | {' | '.join(name for name, _ in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        yield f"| {row} | {' | '.join(cells.get(row, '-') for _, cells in columns)} |"


def column(
    backbone: Backbone, folder: Path, rows: Sequence[str], step_unit: str, rate: float
) -> dict[str, str]:
    """Return a cell per row; methods that the backbone does not take have none."""
    dataset = read_dataset(folder)
    images = few_shot(dataset, shots=SHOTS, seed=1).parts["train"]
    loaded: dict[bool, ImageData] = {}
    cells = {}
    for label in rows:
        method = METHODS[ROWS[label]["method"]]
        as_pixels = method.prompts_images(make_config(ROWS[label]).settings)
        config = make_config(
            {
                "epochs": EPOCHS,
                "batch_size": 4 if as_pixels else 32,
                "views": 0,
                "step_unit": step_unit,
                **ROWS[label],
            }
        )
        try:
            if as_pixels not in loaded:
                loaded[as_pixels] = image_data(images, backbone, as_pixels=as_pixels)
            moved = movements(backbone, dataset.class_names, loaded[as_pixels], config, rate)
        except BackboneUnsupported:
            continue
        cells[label] = "; ".join(_shown(tower) for tower in moved if tower)
        print(backbone.ref.id, step_unit, label, cells[label], flush=True)
    return cells


def movements(
    backbone: Backbone,
    class_names: tuple[str, ...],
    train: ImageData,
    config: TrainConfig,
    rate: float,
) -> tuple[list[float], list[float]]:
    """Return the movement of each block of the text and of the image tower."""
    run = Run(backbone, class_names, config, learning_rate=rate)
    images = image_batches(train, run.towers)
    run.scale_steps(images)
    start = _vectors(run)
    per_epoch = STEPS // EPOCHS
    for epoch in range(EPOCHS):
        for step in range(per_epoch):
            chosen, views, info = run.begin_epoch(epoch, images)[0]
            info = replace(info, step=epoch * per_epoch + step, steps=STEPS)
            run.step(images, chosen, views, info)
    text, image = (
        [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)]
        for before, after in zip(start, _vectors(run), strict=True)
    )
    return text, image


def _vectors(run: Run) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the vectors of each block of both towers."""
    if isinstance(run.learner, Adapt):
        towers = (run.learner.text, run.learner.image)
        text, image = ([*tower.rows.detach().clone()] for tower in towers)
        return text, image
    contexts = run.folded()
    text, image = (
        [tensor for tensor in (tower.context, *tower.deeper) if tensor is not None]
        for tower in (contexts.text, contexts.image)
    )
    return text, image


def _shown(blocks: Sequence[float]) -> str:
    first, *deeper = blocks
    return f"{first:.2g} / {statistics.median(deeper):.2g}" if deeper else f"{first:.2g}"


if __name__ == "__main__":
    main()
