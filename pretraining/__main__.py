"""Build the embedded backbones from scratch: `python -m pretraining --work DIR`.

About three hours on two CPU cores. Each stage skips itself when its output is in DIR.
"""

import argparse
from pathlib import Path

import torch

from pretraining.assemble import assemble
from pretraining.drawings import draw_sets
from pretraining.evaluate import evaluate
from pretraining.graphs import write_graphs
from pretraining.image_features import convert_trunk, encode_icons, export_trunk
from pretraining.joint import train_joint
from pretraining.model_card import write_model_card
from pretraining.names import embed_names
from pretraining.sample import write_sample
from pretraining.small_vit import train_small_vit
from pretraining.sources import fetch_sources
from pretraining.text_tower import train_text_tower
from pretraining.tokens import cut_bpe
from pretraining.vit_card import write_vit_card
from pretraining.vit_evaluate import evaluate_vit
from pretraining.vit_shipped import write_vit
from pretraining.workdir import WorkDir

STAGES = (
    fetch_sources,
    cut_bpe,
    convert_trunk,
    export_trunk,
    encode_icons,
    embed_names,
    train_text_tower,
    train_joint,
    assemble,
    write_sample,
    evaluate,
    write_model_card,
    draw_sets,
    train_small_vit,
    write_vit,
    evaluate_vit,
    write_vit_card,
    write_graphs,
)


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Folder for all that is made.")
    parser.add_argument(
        "--photo-features",
        type=Path,
        default=Path("../shared/backbone/photo_features.npz"),
        help="npz with `features` (1000, 1280) and `names`: one photograph per ImageNet class.",
    )
    parser.add_argument(
        "--flowers",
        type=Path,
        default=Path("../shared/data/flowers"),
        help="Image folder with train/ and test/; for measuring, never for training.",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads. [default: 2]")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work = WorkDir(root=given.work, photo_features=given.photo_features, flowers=given.flowers)
    for stage in STAGES:
        print(f"== {stage.__name__}", flush=True)
        stage(work)


if __name__ == "__main__":
    main()
