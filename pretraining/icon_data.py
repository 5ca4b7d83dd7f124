"""The stored icon features as one table to draw training batches from."""

from dataclasses import dataclass

import numpy as np
import torch

from pretraining.icons import TRAINED_EMOJI_STYLES, list_sets
from pretraining.workdir import WorkDir
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES

# Share of a batch by kind of drawing; emoji are closest to typical inputs.
SHARES = {"emoji": 0.6, "color": 0.2, "plain": 0.2}
RARE_WEIGHT = 0.3  # weight of flags, faces and signs


@dataclass(frozen=True, kw_only=True)
class IconTable:
    """N drawings; augmented views count as separate drawings."""

    features: torch.Tensor  # (N, 1280) float16
    labels: torch.Tensor  # (N,) index into `names`
    styles: torch.Tensor  # (N,) index into `style_names`
    chance: torch.Tensor  # (N,) sampling probability
    names: tuple[str, ...]
    style_names: tuple[str, ...]


def noto_groups(work: WorkDir) -> dict[str, str]:
    """Map names to Unicode groups ("Food & Drink"), as in the set `noto`."""
    stored = np.load(work.features / "noto.npz")
    return dict(zip(stored["names"].tolist(), stored["groups"].tolist(), strict=True))


def load_icons(work: WorkDir, held_out: tuple[str, ...] = ()) -> IconTable:
    """Load all trained sets except those held out for selecting settings."""
    if leaked := set(held_out) & set(UNSEEN_STYLES):
        raise ValueError(f"{leaked} are never trained on, so there is nothing to hold out.")
    features, names, styles, weights = [], [], [], []
    for icon_set in list_sets(work.iconify):
        path = work.features / f"{icon_set.prefix}.npz"
        if icon_set.prefix in (*UNSEEN_STYLES, *held_out) or not path.exists():
            continue
        stored = np.load(path)
        kind = (
            "emoji"
            if icon_set.prefix in TRAINED_EMOJI_STYLES
            else "color"
            if icon_set.color
            else "plain"
        )
        features.append(torch.from_numpy(stored["features"]))
        names += stored["names"].tolist()
        styles += [(icon_set.prefix, kind)] * len(stored["names"])
        weights += np.where(stored["rare"], RARE_WEIGHT, 1.0).tolist()
    known = tuple(dict.fromkeys(names))
    style_names = tuple(dict.fromkeys(style for style, _ in styles))
    kinds = np.array([kind for _, kind in styles])
    chance = np.array(weights)
    for kind, share in SHARES.items():
        chance[kinds == kind] *= share / max(1e-9, chance[kinds == kind].sum())
    index = {name: i for i, name in enumerate(known)}
    style_index = {style: i for i, style in enumerate(style_names)}
    return IconTable(
        features=torch.cat(features),
        labels=torch.tensor([index[name] for name in names]),
        styles=torch.tensor([style_index[style] for style, _ in styles]),
        chance=torch.from_numpy(chance / chance.sum()),
        names=known,
        style_names=style_names,
    )


def plain_views(work: WorkDir, style: str) -> tuple[np.ndarray, list[str]]:
    """Return the unaugmented features (N, 1280) and names of one emoji style."""
    stored = np.load(work.features / f"{style}.npz")
    plain = stored["views"] == 0
    return stored["features"][plain].astype(np.float32), stored["names"][plain].tolist()
