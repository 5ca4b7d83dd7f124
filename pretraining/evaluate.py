"""Measure the shipped files: zero-shot on drawings and photographs, and with a learned prompt.

    python -m pretraining.evaluate --work DIR

Everything is computed with the shipped (fp16-rounded) weights in float32.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from pretraining.icon_data import noto_groups, plain_views
from pretraining.image_features import IMAGE_SIZE, encode_images, image_encoder, to_pixels
from pretraining.text_tower import PRODUCT_TEMPLATE, TokenTable, encode_texts
from pretraining.tokens import load_tokenizer
from pretraining.workdir import EMBEDDED, EMOJI_SAMPLE, WorkDir
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES

GROUPS = ("Animals & Nature", "Food & Drink", "Objects")
FLOWER_NAMES = {"roses": "rose", "sunflowers": "sunflower", "tulips": "tulip"}
SHOTS = 16
VIEWS = 5  # the plain image and four augmented ones
EPOCHS = 50
LEARNING_RATES = (0.02, 0.2)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The shipped model, as installed."""

    model: open_clip.CLIP
    tokenizer: open_clip.SimpleTokenizer
    logit_scale: float

    @torch.no_grad()
    def class_features(self, names: list[str], template: str = PRODUCT_TEMPLATE) -> torch.Tensor:
        """Return class features (C, E) of unit length from open_clip's `encode_text`."""
        tokens = self.tokenizer([template.format(name) for name in names])
        return torch.cat(
            [self.model.encode_text(some, normalize=True) for some in tokens.split(256)]
        )

    @torch.no_grad()
    def project(self, features: np.ndarray) -> torch.Tensor:
        """Project pooled features (..., 1280) to (..., E) of unit length."""
        projected = self.model.visual.head(torch.from_numpy(features).float())
        return F.normalize(projected, dim=-1)


def load_shipped(folder: Path = EMBEDDED) -> Shipped:
    """Load strictly: the file must contain exactly the tensors of the model."""
    config = json.loads((folder / "config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"]).eval()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(
        {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        },
        strict=True,
    )
    return Shipped(
        model=model,
        tokenizer=load_tokenizer(folder / config["tokenizer"]["bpe"]),
        logit_scale=model.logit_scale.exp().item(),
    )


@torch.no_grad()
def check_stored_features(shipped: Shipped, work: WorkDir) -> float:
    """Return the largest difference between the ONNX trunk + head and the shipped model."""
    paths = sorted(work.flowers.glob("test/*/*.jpg"))[::40]
    pixels = np.stack([to_pixels(Image.open(path)) for path in paths])
    whole = shipped.model.encode_image((torch.from_numpy(pixels) - 127) / 128, normalize=True)
    parts = shipped.project(image_encoder(work)(pixels))
    return float((whole - parts).abs().max())


def group_accuracy(
    shipped: Shipped, work: WorkDir, style: str, template: str = PRODUCT_TEMPLATE
) -> dict[str, tuple[float, int]]:
    """Return, by group, top-1 over the names that the style draws, and their number."""
    features, names = plain_views(work, style)
    return score_groups(shipped, shipped.project(features), names, work, template)


def score_groups(
    shipped: Shipped,
    images: torch.Tensor,
    names: list[str],
    work: WorkDir,
    template: str = PRODUCT_TEMPLATE,
) -> dict[str, tuple[float, int]]:
    """Return the same for image features (N, E) of another image tower."""
    groups = noto_groups(work)
    found = {}
    for group in GROUPS:
        rows = [i for i, name in enumerate(names) if groups.get(name) == group]
        labels = [names[i] for i in rows]
        classes = list(dict.fromkeys(labels))
        found[group] = (
            accuracy(
                images[rows],
                shipped.class_features(classes, template),
                [classes.index(label) for label in labels],
            ),
            len(classes),
        )
    return found


def accuracy(images: torch.Tensor, classes: torch.Tensor, labels: list[int]) -> float:
    """Return top-1 accuracy of (N, E) against (C, E)."""
    return float(((images @ classes.T).argmax(-1) == torch.tensor(labels)).float().mean())


@dataclass(frozen=True, kw_only=True)
class LabeledFeatures:
    """Return pooled features (N, V, 1280) of an image folder, and its class names."""

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def encode_labeled(folder: Path, work: WorkDir, views: int, seed: int = 0) -> LabeledFeatures:
    """Return each image unchanged and in `views - 1` random crops, half of them mirrored."""
    encode, rng = image_encoder(work, threads=2), np.random.default_rng(seed)
    paths = sorted(path for path in folder.glob("*/*") if path.suffix in (".jpg", ".png"))
    classes = sorted({path.parent.name for path in paths})
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        images += [image, *(_random_crop(image, rng) for _ in range(views - 1))]
    return LabeledFeatures(
        features=encode_images(images, encode).reshape(len(paths), views, 1280),
        labels=np.array([classes.index(path.parent.name) for path in paths]),
        class_names=tuple(FLOWER_NAMES.get(name, name) for name in classes),
    )


def _random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply torchvision's RandomResizedCrop(scale=(0.4, 1)) and flip with a given generator."""
    width, height = image.size
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    area = width * height * rng.uniform(0.4, 1.0)
    crop = (min(width, round(np.sqrt(area * ratio))), min(height, round(np.sqrt(area / ratio))))
    left, top = (
        int(rng.integers(0, full - part + 1)) for full, part in zip(image.size, crop, strict=True)
    )
    cut = image.resize(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Resampling.BICUBIC,
        box=(left, top, left + crop[0], top + crop[1]),
    )
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def learn_dip(
    shipped: Shipped,
    table: TokenTable,
    images: torch.Tensor,
    labels: torch.Tensor,
    rank: int,
    learning_rate: float,
    seed: int,
) -> torch.Tensor:
    """Class features (C, E) under a learned prompt P = P_init + A @ B (DIP, arXiv 2312.10813).

    Args:
        images: (N, V, E) unit features of the shots, in V views.
        labels: (N,) class of each.
        rank: of A (4, rank) and B (rank, width); P_init are the words "a photo of a".
    """
    torch.manual_seed(seed)
    model = shipped.model
    prefix, texts = table.split(PRODUCT_TEMPLATE, np.arange(len(table.names)))
    words = model.token_embedding(prefix).detach()
    left = nn.Parameter(0.02 * torch.randn(len(words) - 1, rank))
    right = nn.Parameter(0.02 * torch.randn(rank, words.shape[1]))

    def class_features() -> torch.Tensor:
        context = torch.cat([words[:1], words[1:] + left @ right])
        return F.normalize(encode_texts(model, context, texts), dim=-1)

    optimizer = torch.optim.SGD([left, right], lr=learning_rate, momentum=0.9, weight_decay=5e-4)
    per_epoch = -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * per_epoch)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(32):
            shown = images[rows, torch.randint(images.shape[1], (len(rows),))]
            logits = shipped.logit_scale * shown @ class_features().T
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return class_features().detach()


def learned_accuracy(
    shipped: Shipped, work: WorkDir, train: LabeledFeatures, test: LabeledFeatures, rank: int
) -> tuple[list[float], float]:
    """Return the test accuracy per seed at the best learning rate on unused training images."""
    table = TokenTable(train.class_names, work)
    shots = [_draw_shots(train.labels, seed) for seed in SEEDS]
    views, plain = shipped.project(train.features), shipped.project(test.features[:, 0])
    results: dict[float, tuple[float, list[float]]] = {}
    for rate in LEARNING_RATES:
        held_out, tested = [], []
        for seed, (used, unused) in zip(SEEDS, shots, strict=True):
            classes = learn_dip(
                shipped, table, views[used], torch.from_numpy(train.labels[used]), rank, rate, seed
            )
            held_out.append(accuracy(views[unused, 0], classes, train.labels[unused].tolist()))
            tested.append(accuracy(plain, classes, test.labels.tolist()))
        results[rate] = (float(np.mean(held_out)), tested)
    best = max(results, key=lambda rate: results[rate][0])
    return results[best][1], best


def _draw_shots(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split into 16 rows per class for training, and the rest."""
    rng = np.random.default_rng(seed)
    used = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:SHOTS] for label in np.unique(labels)]
    )
    return used, np.setdiff1d(np.arange(len(labels)), used)


Figures = dict[str, str]  # name of a measurement -> result, as printed


def measure_groups(shipped: Shipped, work: WorkDir) -> Figures:
    """Measure zero-shot accuracy on `noto`, a trained style, and on the unseen styles."""
    figures = {}
    for style in ("noto", *UNSEEN_STYLES):
        for group, (score, classes) in group_accuracy(shipped, work, style).items():
            figures[f"{style}, {group}, {classes} names: zero-shot"] = f"{score:.1%}"
    return figures


def measure_folder(title: str, folder: Path, shipped: Shipped, work: WorkDir) -> Figures:
    """Measure zero-shot, learned and class-mean accuracy on a folder with train/ and test/."""
    train = encode_labeled(folder / "train", work, VIEWS)
    test = encode_labeled(folder / "test", work, 1)
    images, labels = shipped.project(test.features[:, 0]), test.labels.tolist()
    names = list(train.class_names)
    title = f"{title}, {len(names)} classes, {len(labels)} test images"
    figures = {
        f"{title}: zero-shot": f"{accuracy(images, shipped.class_features(names), labels):.1%}"
    }
    for rank in (1, 4):
        scores, rate = learned_accuracy(shipped, work, train, test, rank)
        each = ", ".join(f"{score:.1%}" for score in scores)
        figures[f"{title}: DIP r={rank}, {SHOTS} shots, mean of {len(SEEDS)} seeds"] = (
            f"{np.mean(scores):.1%} ({each}; learning rate {rate})"
        )
    views = shipped.project(train.features[:, 0])
    means = torch.stack([views[train.labels == i].mean(0) for i in range(len(names))])
    score = accuracy(images, F.normalize(means, dim=-1), labels)
    figures[f"{title}: nearest mean of all training images"] = f"{score:.1%}"
    return figures


def main(arguments: Any = None) -> None:
    """Print every figure of the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="The pipeline's work folder.")
    parser.add_argument(
        "--photo-features", type=Path, default=Path("../shared/backbone/photo_features.npz")
    )
    parser.add_argument("--flowers", type=Path, default=Path("../shared/data/flowers"))
    given = parser.parse_args(arguments)
    evaluate(WorkDir(root=given.work, photo_features=given.photo_features, flowers=given.flowers))


def evaluate(work: WorkDir) -> None:
    """Measure the files in `prompt_serve/assets`, print the figures and store them."""
    shipped = load_shipped()
    difference = check_stored_features(shipped, work)
    figures = {
        "embedding by ONNX trunk + head against open_clip, largest difference": f"{difference:.1e}"
    }
    figures |= measure_groups(shipped, work)
    figures |= measure_folder("flowers", work.flowers, shipped, work)
    figures |= measure_folder("emoji sample", EMOJI_SAMPLE, shipped, work)
    for what, value in figures.items():
        print(f"{what}: {value}")
    work.figures.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
