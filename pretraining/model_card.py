"""MODEL_CARD.md beside the weights: data with licenses, figures with their command, limits."""

import json
from pathlib import Path

import numpy as np

from pretraining.icons import COPIES_OF_UNSEEN_STYLES, trained_sets
from pretraining.workdir import EMBEDDED, WorkDir
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES

BODY = (Path(__file__).parent / "model_card.md.in").read_text
SPDX_NOTE = "Licenses as iconify lists them (SPDX)."


def write_model_card(work: WorkDir) -> None:
    """Fill the template with the data and figures of this run."""
    card = BODY().format(
        figures=_figures(work),
        sets=_sets(work),
        note=SPDX_NOTE,
        unseen=", ".join(f"`{style}`" for style in UNSEEN_STYLES),
        copies=", ".join(f"`{style}`" for style in COPIES_OF_UNSEEN_STYLES),
        size=f"{(EMBEDDED / 'model.safetensors').stat().st_size:,}",
    )
    (EMBEDDED / "MODEL_CARD.md").write_text(card)


def _figures(work: WorkDir) -> str:
    lines = ["| measured | result |", "|---|---|"]
    figures = json.loads(work.figures.read_text())
    return "\n".join(lines + [f"| {what} | {value} |" for what, value in figures.items()])


def _sets(work: WorkDir) -> str:
    lines = ["| set | title | author | license | drawings used |", "|---|---|---|---|---|"]
    for icon_set in trained_sets(work.iconify):
        path = work.features / f"{icon_set.prefix}.npz"
        if path.exists():
            count = int((np.load(path)["views"] == 0).sum())
            lines.append(
                f"| `{icon_set.prefix}` | {icon_set.title} | {icon_set.author} | "
                f"{icon_set.license} | {count} |"
            )
    return "\n".join(lines)
