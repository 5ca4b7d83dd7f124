"""A small ViT distilled from the embedded backbone's image features.

`python -m pretraining.small_vit --work DIR` trains it alone. Names take no part: the ViT learns to
put a drawing where the teacher's image tower puts it, and so shares the teacher's text tower.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from pretraining.evaluate import load_shipped
from pretraining.icon_data import load_icons
from pretraining.names import EMBED_DIM
from pretraining.workdir import WorkDir, written_whole

SIZE = 64
HEAD_WIDTH = 64
MEAN, STD = 0.8, 0.3  # of pixels 0..1; drawings are mostly white
SIDED = {"left", "right", "leftwards", "rightwards", "east", "west", "clockwise"}
POSITION_SPREAD = 0.3  # initial; white patches differ only in position
REPORT_STEPS = 100
CHECKPOINT_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation strength relative to the teacher's drawing."""

    scale: float = 0.1  # largest relative change of size
    turn: float = 0.08  # radians
    shift: float = 0.06  # fraction of half the side
    mirrored: float = 0.3  # share of drawings whose name has no left or right
    scaled: float = 0.4  # share rendered larger and scaled down
    grounds: float = 0.15  # share on a light color instead of white
    colors: float = 0.05  # spread of the 3x3 matrix that mixes the channels
    brightness: float = 0.08


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """The settings of one training run."""

    patch: int = 16
    width: int = 192
    layers: int = 6
    steps: int = 5700
    batch: int = 64
    others: int = 1024  # additional teacher features as negatives
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up: int = 150
    decay_share: float = 0.85  # final fraction of steps, during which the rate falls to zero
    cosine_weight: float = 5.0
    contrast_scale: float = 15.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0


FINAL = VitConfig()


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """N drawings with the teacher's targets."""

    pixels: torch.Tensor  # (N, 64, 64, 4) uint8
    scaled: torch.Tensor  # (N,) row of the same drawing, drawn larger, in `pixels`
    targets: torch.Tensor  # (N, 2, E) unit length: the embedding, and the features' main axes
    sided: torch.Tensor  # (N,) bool: must not be mirrored
    chance: torch.Tensor  # (N,) sampling probability


def load_drawings(work: WorkDir, held_out: tuple[str, ...] = ()) -> Drawings:
    """Load all trained sets except those held out; sampled as for the teacher's projection."""
    icons = load_icons(work, held_out)
    plain, larger, views = [], [], []
    for style in icons.style_names:
        stored = np.load(work.drawings / f"{style}.npz")
        plain.append(torch.from_numpy(stored["pixels"]))
        larger.append(torch.from_numpy(stored["scaled"]))
        views.append(torch.from_numpy(np.load(work.features / f"{style}.npz")["views"]))
    scaled = torch.arange(len(icons.features))
    first_views = torch.cat(views) == 0
    scaled[first_views] = len(scaled) + torch.arange(int(first_views.sum()))
    by_name = torch.tensor([bool(SIDED & set(name.split())) for name in icons.names])
    return Drawings(
        pixels=torch.cat(plain + larger),
        scaled=scaled,
        targets=torch.stack(
            [load_shipped().project(icons.features.numpy()), main_axes(icons.features.float())], 1
        ),
        sided=by_name[icons.labels],
        chance=icons.chance,
    )


def main_axes(features: torch.Tensor) -> torch.Tensor:
    """(N, 1280) -> (N, E), unit length: centered, on their E principal axes."""
    centered = features - features.mean(0)
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -EMBED_DIM:]
    return F.normalize(centered @ axes, dim=-1)


def new_vit(config: VitConfig = FINAL) -> Any:
    """Return 2 E numbers: the embedding and an auxiliary target (untyped, as open_clip)."""
    vit = VisionTransformer(
        image_size=SIZE,
        patch_size=config.patch,
        width=config.width,
        layers=config.layers,
        heads=config.width // HEAD_WIDTH,
        mlp_ratio=4.0,
        output_dim=2 * EMBED_DIM,
    )
    spread = config.width**-0.5
    nn.init.normal_(vit.positional_embedding, std=POSITION_SPREAD)
    for block in vit.transformer.resblocks:  # as CLIP does; open_clip does so for text alone
        nn.init.normal_(block.attn.in_proj_weight, std=spread)
        nn.init.normal_(block.attn.out_proj.weight, std=spread * (2 * config.layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=spread * 0.5**0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=spread * (2 * config.layers) ** -0.5)
    return vit


def augment(
    pixels: torch.Tensor, sided: torch.Tensor, how: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """(B, 64, 64, 4) uint8 -> (B, 3, 64, 64) in 0..1: moved, mirrored, on a ground, recolored."""
    count = len(pixels)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator)

    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    opaque = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    turn = (uniform() * 2 - 1) * how.turn
    zoom = 1 + (uniform() * 2 - 1) * how.scale
    mirror = torch.where((uniform() < how.mirrored) & ~sided, -1.0, 1.0)
    shift = (uniform(2) * 2 - 1) * how.shift
    cosine, sine = turn.cos() / zoom, turn.sin() / zoom
    matrix = torch.stack([mirror * cosine, -sine, shift[:, 0], mirror * sine, cosine, shift[:, 1]])
    grid = F.affine_grid(matrix.T.reshape(count, 2, 3), list(opaque.shape), align_corners=False)
    moved = F.grid_sample(opaque, grid, padding_mode="border", align_corners=False)
    light = 0.45 + 0.55 * uniform(3, 1, 1)
    ground = torch.where(uniform(1, 1, 1) < how.grounds, light, 1.0)
    flat = moved[:, :3] + ground * (1 - moved[:, 3:])
    mix = torch.eye(3) + how.colors * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.sum(-1, keepdim=True)  # white stays white
    bright = 1 + (uniform(1, 1) * 2 - 1) * how.brightness
    mixed = (bright * mix @ flat.flatten(2)).clamp(0, 1)
    return mixed.reshape(flat.shape)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalize pixels 0..1 for the ViT."""
    return (images - MEAN) / STD


def draw_batch(
    drawings: Drawings, config: VitConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 64, 64) images and (B, E) targets."""
    rows = torch.multinomial(drawings.chance, config.batch, replacement=True, generator=generator)
    larger = torch.rand(config.batch, generator=generator) < config.augmentation.scaled
    shown = torch.where(larger, drawings.scaled[rows], rows)
    images = augment(drawings.pixels[shown], drawings.sided[rows], config.augmentation, generator)
    return normalize(images), drawings.targets[rows]


def unit_parts(outputs: torch.Tensor) -> torch.Tensor:
    """(B, 2 E) of the ViT in training -> (B, 2, E), both of unit length."""
    return F.normalize(outputs.unflatten(-1, (2, EMBED_DIM)), dim=-1)


def distillation_loss(
    features: torch.Tensor, targets: torch.Tensor, others: torch.Tensor, config: VitConfig
) -> torch.Tensor:
    """Return the cosine loss to the teacher and the contrastive loss among all and `others`.

    Args:
        features: (B, 2, E) of the ViT.
        targets: (B, 2, E) of the teacher, for the same drawings.
        others: (N, 2, E) of the teacher, for drawings not shown.
    """
    cosine = (features * targets).sum(-1).mean(0)
    candidates = torch.cat([targets, others])
    logits = config.contrast_scale * torch.einsum("bpe,npe->pbn", features, candidates)
    own = torch.arange(len(features)).expand(2, -1)
    contrast = F.cross_entropy(logits.flatten(0, 1), own.flatten())
    return config.cosine_weight * (1 - cosine).sum() + 2 * contrast


def learning_rate(step: int, config: VitConfig) -> float:
    """Return the rate: warm-up, constant, linear to zero; the end can be moved while running."""
    left = (config.steps - step) / (config.decay_share * config.steps)
    return config.learning_rate * min(1.0, (step + 1) / config.warm_up, left)


def new_optimizer(vit: Any, config: VitConfig) -> torch.optim.Optimizer:
    """Build AdamW without decay for biases, norms and the class token."""
    weights = list(vit.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim >= 2]},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )


class Training:
    """One run with all its state, so that an interrupted run resumes exactly."""

    def __init__(self, drawings: Drawings, config: VitConfig) -> None:
        torch.manual_seed(config.seed)
        self.drawings, self.config = drawings, config
        self.vit = new_vit(config).train()
        self.optimizer = new_optimizer(self.vit, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0

    def load(self, path: Path) -> None:
        """Resume from a checkpoint."""
        stored = torch.load(path, weights_only=True)
        self.vit.load_state_dict(stored["vit"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.generator.set_state(stored["generator"])
        self.step = stored["step"]

    def save(self, path: Path) -> None:
        """Return the state for `load`."""
        with written_whole(path) as draft:
            torch.save(
                {
                    "vit": self.vit.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "generator": self.generator.get_state(),
                    "step": self.step,
                },
                draft,
            )

    def run(self) -> Iterator[torch.Tensor]:
        """Train to the last step; yields every batch's cosines (2,) to the teacher."""
        others = self.drawings.targets
        while self.step < self.config.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.config)
            images, targets = draw_batch(self.drawings, self.config, self.generator)
            features = unit_parts(self.vit(images))
            self.vit.zero_grad()
            some = torch.randint(len(others), (self.config.others,), generator=self.generator)
            distillation_loss(features, targets, others[some], self.config).backward()
            nn.utils.clip_grad_norm_(self.vit.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            yield (features.detach() * targets).sum(-1).mean(0)


def embedding_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the ViT's tensors without the auxiliary output."""
    return {**weights, "proj": weights["proj"][:, :EMBED_DIM].clone()}


def train_small_vit(work: WorkDir, config: VitConfig = FINAL) -> None:
    """Run the final training on all trained styles; resumes from its checkpoint."""
    if work.small_vit.exists():
        return
    torch.set_flush_denormal(True)
    checkpoint = work.small_vit.with_suffix(".checkpoint.pt")
    training = Training(load_drawings(work), config)
    if checkpoint.exists():
        training.load(checkpoint)
    started, saved, first, cosines = time.time(), time.time(), training.step, []
    for cosine in training.run():
        cosines.append(cosine)
        if training.step % REPORT_STEPS == 0:
            mean = torch.stack(cosines).mean(0)
            speed = (training.step - first) * config.batch / (time.time() - started)
            print(
                f"small ViT: step {training.step}/{config.steps} cosine {mean[0]:.3f} "
                f"(main axes {mean[1]:.3f}) {speed:.0f} images/s",
                flush=True,
            )
            cosines = []
        if time.time() - saved > CHECKPOINT_SECONDS:
            training.save(checkpoint)
            saved = time.time()
    with written_whole(work.small_vit) as draft:
        torch.save(embedding_weights(training.vit.state_dict()), draft)


def main() -> None:
    """Train or resume training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="The pipeline's work folder.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads. [default: 2]")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_small_vit(WorkDir(root=given.work, photo_features=Path(), flowers=Path()))


if __name__ == "__main__":
    main()
