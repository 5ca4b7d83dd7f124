"""MODEL_CARD.md beside the small ViT: figures with their command, limits, training."""

import json
from pathlib import Path

from pretraining.icons import COPIES_OF_UNSEEN_STYLES
from pretraining.names import EMBED_DIM
from pretraining.small_vit import FINAL, HEAD_WIDTH, MEAN, STD
from pretraining.workdir import EMBEDDED_VIT, WorkDir
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES


def write_vit_card(work: WorkDir) -> None:
    """Fill the template with the figures of this run."""
    template = (Path(__file__).parent / "vit_card.md.in").read_text()
    card = template.format(
        patch=FINAL.patch,
        width=FINAL.width,
        heads=FINAL.width // HEAD_WIDTH,
        layers=FINAL.layers,
        mean=MEAN,
        std=STD,
        size=f"{(EMBEDDED_VIT / 'model.safetensors').stat().st_size:,}",
        figures=_figures(work),
        steps=f"{FINAL.steps:,}",
        batch=FINAL.batch,
        decay=FINAL.decay_share,
        scaled=FINAL.augmentation.scaled,
        axes=EMBED_DIM,
        others=f"{FINAL.others + FINAL.batch - 1:,}",
        unseen=", ".join(f"`{style}`" for style in UNSEEN_STYLES),
        copies=", ".join(f"`{style}`" for style in COPIES_OF_UNSEEN_STYLES),
    )
    (EMBEDDED_VIT / "MODEL_CARD.md").write_text(card)


def _figures(work: WorkDir) -> str:
    lines = ["| measured | embedded-vit | teacher |", "|---|---|---|"]
    rows = json.loads(work.vit_figures.read_text())
    return "\n".join(lines + [f"| {what} | {ours} | {its} |" for what, (ours, its) in rows.items()])
