"""Select settings without the data of the reports: `python -m pretraining.selecting --work DIR`.

What a setting is judged by: two emoji styles held out of this run only, 200 ImageNet classes held
out of this run only, and the training photographs of flowers. The unseen styles and the test
photographs are never looked at here.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pretraining.evaluate import GROUPS, LabeledFeatures, accuracy, encode_labeled
from pretraining.icon_data import IconTable, load_icons, noto_groups, plain_views
from pretraining.joint import (
    JointConfig,
    Lessons,
    Towers,
    first_projection,
    join_towers,
    load_text_tower,
)
from pretraining.names import imagenet_names
from pretraining.projection import Photographs, ProjectionConfig
from pretraining.text_tower import TokenTable, name_features
from pretraining.workdir import WorkDir

HELD_OUT_STYLES = ("openmoji", "noto-v1")
HELD_OUT_CLASSES = 200

BASE = ProjectionConfig(steps=1000)
ONLY_PROJECTION = JointConfig(steps=0)
CANDIDATES = {
    "base": (BASE, ONLY_PROJECTION),
    "no restyling": (replace(BASE, restyle=0.0, to_photo=0.0), ONLY_PROJECTION),
    "no geometry": (replace(BASE, geometry_weight=0.0), ONLY_PROJECTION),
    "geometry 20": (replace(BASE, geometry_weight=20.0), ONLY_PROJECTION),
    "dropout 0.3": (replace(BASE, dropout=0.3), ONLY_PROJECTION),
    "joint": (BASE, JointConfig(steps=300)),
}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Data for selecting settings."""

    work: WorkDir
    icons: IconTable
    photos: Photographs
    photo_rows: torch.Tensor  # ImageNet classes available for training
    flowers: LabeledFeatures

    def __call__(self, towers: Towers) -> dict[str, float]:
        """Return all figures of one candidate; larger is better."""
        return {**self._styles(towers), **self._photographs(towers), **self._flowers(towers)}

    def _text(self, towers: Towers, words: list[str]) -> torch.Tensor:
        table = TokenTable(tuple(words), self.work)
        return name_features(towers.tower, table, np.arange(len(words)))

    def _styles(self, towers: Towers) -> dict[str, float]:
        groups, found = noto_groups(self.work), {}
        for style in HELD_OUT_STYLES:
            features, names = plain_views(self.work, style)
            for group in GROUPS:
                rows = [i for i, name in enumerate(names) if groups.get(name) == group]
                labels = [names[i] for i in rows]
                classes = list(dict.fromkeys(labels))
                found[f"{style}/{group[:4]}"] = accuracy(
                    project(towers.head, features[rows]),
                    self._text(towers, classes),
                    [classes.index(label) for label in labels],
                )
        return found

    def _photographs(self, towers: Towers) -> dict[str, float]:
        unseen = np.setdiff1d(np.arange(1000), self.photo_rows.numpy())
        names = [imagenet_names(self.work)[i] for i in unseen]
        images = project(towers.head, self.photos.features[unseen].numpy())
        return {
            f"{len(unseen)} unseen classes": accuracy(
                images, self._text(towers, names), list(range(len(unseen)))
            )
        }

    def _flowers(self, towers: Towers) -> dict[str, float]:
        images = project(towers.head, self.flowers.features[:, 0])
        labels = torch.from_numpy(self.flowers.labels)
        zero_shot = accuracy(
            images, self._text(towers, list(self.flowers.class_names)), labels.tolist()
        )
        return {
            "flowers zero-shot": zero_shot,
            "flowers class means": leave_one_out(images, labels),
        }


def project(head: nn.Module, features: np.ndarray) -> torch.Tensor:
    """(N, 1280) -> (N, E), unit length."""
    with torch.no_grad():
        return F.normalize(head(torch.from_numpy(features).float()), dim=-1)


def leave_one_out(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return leave-one-out accuracy of the nearest class mean."""
    member = F.one_hot(labels).float()
    sums, counts = member.T @ images, member.sum(0)
    means = (sums[None] - member[..., None] * images[:, None]) / (counts - member)[..., None]
    nearest = (F.normalize(means, dim=-1) * images[:, None]).sum(-1).argmax(-1)
    return float((nearest == labels).float().mean())


def make_judge(work: WorkDir) -> Judge:
    """Load the data, without the held-out styles and classes."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    return Judge(
        work=work,
        icons=load_icons(work, HELD_OUT_STYLES),
        photos=Photographs(work),
        photo_rows=order[HELD_OUT_CLASSES:].sort().values,
        flowers=encode_labeled(work.flowers / "train", work, views=1),
    )


def main() -> None:
    """Print one line of figures per candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="The pipeline's work folder.")
    parser.add_argument(
        "--photo-features", type=Path, default=Path("../shared/backbone/photo_features.npz")
    )
    parser.add_argument("--flowers", type=Path, default=Path("../shared/data/flowers"))
    parser.add_argument("--only", nargs="*", default=list(CANDIDATES), help="Candidates to try.")
    given = parser.parse_args()
    torch.set_num_threads(2)
    work = WorkDir(root=given.work, photo_features=given.photo_features, flowers=given.flowers)
    judge, tower = make_judge(work), load_text_tower(work)
    for name in given.only:
        projection, joint = CANDIDATES[name]
        lessons = Lessons(work, judge.icons, projection, judge.photo_rows)
        figures = judge(join_towers(lessons, first_projection(lessons, tower), joint))
        print(
            f"{name}: " + " ".join(f"{key} {value:.3f}" for key, value in figures.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
