"""Measure `embedded-vit` beside its teacher `embedded`: `python -m pretraining.vit_evaluate`.

The student is the shipped file as `load_backbone` gives it, and sees images through the product's
own preprocessing. Both share one text tower, so every difference is the image tower's.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pretraining.evaluate import (
    Shipped,
    accuracy,
    encode_labeled,
    load_shipped,
    score_groups,
)
from pretraining.icon_data import plain_views
from pretraining.icons import TRAINED_EMOJI_STYLES
from pretraining.workdir import EMOJI_SAMPLE, WorkDir
from prompt_serve.preprocess import to_pixels
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES
from prompt_serve.research.iconbench.svg_rendering import on_background
from prompt_serve.training.clip.backbone import EMBEDDED_VIT, Backbone, load_backbone

Rows = dict[str, tuple[str, str]]  # measurement -> ViT, teacher
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Student and teacher."""

    vit: Backbone
    teacher: Shipped
    work: WorkDir

    def see(self, images: Iterator[Image.Image]) -> torch.Tensor:
        """(N, E) of the student, from RGB images of any size."""
        pixels = torch.from_numpy(np.stack([to_pixels(i, self.vit.preprocessing) for i in images]))
        return torch.cat([self.vit.encode_images(some) for some in pixels.split(BATCH)]).clone()


def style_features(pair: Pair, style: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(N, E) of student and teacher for the plain drawings of an emoji style, and their names."""
    features, names = plain_views(pair.work, style)
    views = np.load(pair.work.features / f"{style}.npz")["views"]
    drawn = np.load(pair.work.drawings / f"{style}.npz")["pixels"][views == 0]
    student = pair.see(on_background(Image.fromarray(pixels, "RGBA")) for pixels in drawn)
    return student, pair.teacher.project(features), names


def measure_styles(pair: Pair) -> Rows:
    """Cosine to the teacher on every emoji style; zero-shot by groups on noto and unseen styles."""
    cosines: Rows = {}
    groups: Rows = {}
    for style in (*TRAINED_EMOJI_STYLES, *UNSEEN_STYLES):
        student, teacher, names = style_features(pair, style)
        kind = "never trained on" if style in UNSEEN_STYLES else "trained"
        cosine = float((student * teacher).sum(-1).mean())
        cosines[f"{style} ({kind}), {len(names)} drawings: mean cosine"] = (f"{cosine:.3f}", "1")
        if style in ("noto", *UNSEEN_STYLES):
            ours = score_groups(pair.teacher, student, names, pair.work)
            theirs = score_groups(pair.teacher, teacher, names, pair.work)
            for group, (score, classes) in ours.items():
                groups[f"{style}, {group}, {classes} names: zero-shot"] = (
                    f"{score:.1%}",
                    f"{theirs[group][0]:.1%}",
                )
    return cosines | groups


def measure_folder(title: str, folder: Path, pair: Pair) -> Rows:
    """Measure zero-shot on both splits, and accuracy by class means of the training images."""
    rows: Rows = {}
    means: list[torch.Tensor] = []
    for split in ("train", "test"):
        encoded = encode_labeled(folder / split, pair.work, views=1)
        labels, names = encoded.labels, list(encoded.class_names)
        teacher = pair.teacher.project(encoded.features[:, 0])
        student = pair.see(_images(folder / split))
        classes = pair.teacher.class_features(names)
        what = f"{title}, {split}, {len(names)} classes, {len(labels)} images"
        rows[f"{what}: zero-shot"] = _scores(student, teacher, [classes] * 2, labels)
        if split == "train":
            means = [_class_means(features, labels) for features in (student, teacher)]
        else:
            rows[f"{what}: nearest mean of the training images"] = _scores(
                student, teacher, means, labels
            )
    return rows


def _images(folder: Path) -> Iterator[Image.Image]:
    """Return labels in the order of `encode_labeled`."""
    for path in sorted(path for path in folder.glob("*/*") if path.suffix in (".jpg", ".png")):
        yield Image.open(path).convert("RGB")


def _class_means(features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    means = [features[torch.from_numpy(labels == label)].mean(0) for label in np.unique(labels)]
    return F.normalize(torch.stack(means), dim=-1)


def _scores(
    student: torch.Tensor, teacher: torch.Tensor, classes: list[torch.Tensor], labels: np.ndarray
) -> tuple[str, str]:
    """Return top-1 of both, each against its own (C, E)."""
    ours = accuracy(student, classes[0], labels.tolist())
    theirs = accuracy(teacher, classes[1], labels.tolist())
    return f"{ours:.1%}", f"{theirs:.1%}"


def evaluate_vit(work: WorkDir) -> None:
    """Measure the files in `prompt_serve/assets`, print the figures and store them."""
    pair = Pair(vit=load_backbone(EMBEDDED_VIT), teacher=load_shipped(), work=work)
    rows = measure_styles(pair)
    rows |= measure_folder("emoji sample", EMOJI_SAMPLE, pair)
    rows |= measure_folder("flowers", work.flowers, pair)
    for what, (ours, theirs) in rows.items():
        print(f"{what}: {ours} (teacher {theirs})")
    work.vit_figures.write_text(json.dumps(rows, indent=2))


def main() -> None:
    """Print every figure of the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="The pipeline's work folder.")
    parser.add_argument("--flowers", type=Path, default=Path("../shared/data/flowers"))
    given = parser.parse_args()
    evaluate_vit(WorkDir(root=given.work, photo_features=Path(), flowers=given.flowers))


if __name__ == "__main__":
    main()
