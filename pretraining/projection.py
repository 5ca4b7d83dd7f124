"""Projection from image features (1280) to the text tower's space (256).

Trained on stored features against text features, with three teachers at once: the names of icons,
EfficientNet's own class probabilities on photographs, and the geometry of the raw features, which
keeps details that no name asks for and that a learned prompt can use later.
"""

from dataclasses import dataclass

import numpy as np
import torch
from timm.layers.mlp import Mlp
from torch import nn
from torch.nn import functional as F

from pretraining.icon_data import IconTable
from pretraining.image_features import load_trunk
from pretraining.names import EMBED_DIM
from pretraining.workdir import WorkDir

FEATURES = 1280


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """The settings of one training run."""

    steps: int = 1500
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    icons: int = 512  # per batch
    photos: int = 256  # per batch, mixed from two photographs each
    photo_weight: float = 1.0
    geometry_weight: float = 5.0
    dropout: float = 0.1  # rate for single features
    restyle: float = 0.5  # share of icons moved to another style's mean and spread
    to_photo: float = 0.15  # share of icons moved to the photographs' mean and spread
    noise: float = 0.3  # along the features' own spread, for photographs
    seed: int = 0


class Photographs:
    """One photograph per ImageNet class, and EfficientNet's classifier as the teacher."""

    def __init__(self, work: WorkDir) -> None:
        trunk = load_trunk(work)
        self.features = torch.from_numpy(np.load(work.photo_features)["features"]).float()
        self.weight = trunk.get_parameter("classifier.weight").detach()
        self.bias = trunk.get_parameter("classifier.bias").detach()

    def soft_targets(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 1280) -> (B, 1000) class probabilities."""
        return (features @ self.weight.T + self.bias).softmax(-1)

    def mixed(self, count: int, noise: float, rows: torch.Tensor) -> torch.Tensor:
        """(count, 1280): pairs of photographs, weighted at random, with noise along the spread.

        The noise is a random combination of differences between photographs, so that it stays
        where features of photographs lie.
        """
        first, second, third, fourth = rows[torch.randint(len(rows), (4, count))]
        share = torch.rand(count, 1) * 0.5
        mixed = self.features[first] * (1 - share) + self.features[second] * share
        shift = self.features[third] - self.features[fourth]
        return (mixed + noise * torch.rand(count, 1) * shift).clamp(min=0)


class Styles:
    """Mean and spread of the features of every style, to move a drawing from one to another."""

    def __init__(self, icons: IconTable, photos: torch.Tensor) -> None:
        tables = [icons.features[icons.styles == i].float() for i in range(len(icons.style_names))]
        tables.append(photos)
        self.mean = torch.stack([table.mean(0) for table in tables])
        self.spread = torch.stack([table.std(0, correction=0) + 1e-3 for table in tables])
        # Means of tiny sets are noise, so only larger sets are targets.
        self.targets = torch.tensor([i for i, table in enumerate(tables[:-1]) if len(table) > 400])

    def move(
        self, features: torch.Tensor, styles: torch.Tensor, config: ProjectionConfig
    ) -> torch.Tensor:
        """Shift drawings to the statistics of other styles, and some to those of photographs."""
        chance = torch.rand(len(styles))
        other = self.targets[torch.randint(len(self.targets), (len(styles),))]
        to = torch.where(chance < config.restyle, other, styles)
        to = torch.where(chance > 1 - config.to_photo, len(self.mean) - 1, to)
        amount = torch.rand(len(styles), 1) * (to != styles)[:, None]
        ratio = (self.spread[to] / self.spread[styles]).clamp(0.5, 2)
        moved = (features - self.mean[styles]) * ratio + self.mean[to]
        return (features * (1 - amount) + moved * amount).clamp(min=0)


def new_projection() -> Mlp:
    """Build the head as open_clip does for `timm_proj: mlp` with `timm_proj_bias`."""
    return Mlp(FEATURES, 2 * EMBED_DIM, EMBED_DIM)


class Teaching:
    """Sampled inputs of a training step of the projection."""

    def __init__(
        self,
        icons: IconTable,
        photos: Photographs,
        config: ProjectionConfig,
        photo_rows: torch.Tensor | None = None,
    ) -> None:
        self.icons, self.photos, self.config = icons, photos, config
        self.photo_rows = torch.arange(1000) if photo_rows is None else photo_rows
        self.styles = Styles(icons, photos.features[self.photo_rows])
        icon_mean = (icons.features[::7].float()).mean(0)
        self.center = (icon_mean + photos.features[self.photo_rows].mean(0)) / 2

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return icon features, their labels, photo features, and the geometry to preserve."""
        config = self.config
        rows = torch.multinomial(self.icons.chance, config.icons, replacement=True)
        icons = self.icons.features[rows].float()
        icons = self.styles.move(icons, self.icons.styles[rows], config)
        photos = self.photos.mixed(config.photos, config.noise, self.photo_rows)
        return icons, self.icons.labels[rows], photos, self.geometry(photos)

    def geometry(self, features: torch.Tensor) -> torch.Tensor:
        """(B, B) cosines of the centered raw features."""
        unit = F.normalize(features - self.photos.features.mean(0), dim=-1)
        return unit @ unit.T

    def loss_of(
        self,
        shown: torch.Tensor,
        labels: torch.Tensor,
        photos: torch.Tensor,
        geometry: torch.Tensor,
        scale: torch.Tensor | float,
        name_features: torch.Tensor,
        class_features: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses of the three teachers on one batch.

        Args:
            shown: (icons + photos, E) projected, unit length.
            labels: (icons,) names of the icons.
            photos: (photos, 1280) raw features, which the soft targets come from.
            geometry: (photos, photos) cosines to keep.
            scale: 1 / temperature.
            name_features: (C, E) of the icon names, unit length.
            class_features: (len(photo_rows), E) of the ImageNet names, unit length.
        """
        on_icons, on_photos = shown.split([len(labels), len(photos)])
        names = F.cross_entropy(scale * on_icons @ name_features.T, labels)
        classes = self._soft(on_photos, photos, scale, class_features)
        kept = ((on_photos @ on_photos.T - geometry) ** 2).mean()
        weighed = self.config.photo_weight * classes + self.config.geometry_weight * kept
        total: torch.Tensor = names + weighed
        return total

    def _soft(
        self,
        projected: torch.Tensor,
        features: torch.Tensor,
        scale: torch.Tensor | float,
        class_features: torch.Tensor,
    ) -> torch.Tensor:
        wanted = self.photos.soft_targets(features)[:, self.photo_rows]
        wanted = wanted / wanted.sum(-1, keepdim=True)
        return -(wanted * (scale * projected @ class_features.T).log_softmax(-1)).sum(-1).mean()


def drop(features: torch.Tensor, share: float) -> torch.Tensor:
    """Set single features to zero, as in an image without that detail."""
    return features * (torch.rand_like(features) > share)


def train_projection(
    teaching: Teaching, name_features: torch.Tensor, class_features: torch.Tensor
) -> tuple[Mlp, float]:
    """The projection on raw (uncentered) features, and the logit scale it was trained at."""
    config = teaching.config
    torch.manual_seed(config.seed)
    head, log_scale = new_projection(), nn.Parameter(torch.tensor(3.4))
    optimizer = torch.optim.AdamW(
        [*head.parameters(), log_scale], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps)
        icons, labels, photos, geometry = teaching.draw()
        images = drop(torch.cat([icons, photos]), config.dropout) - teaching.center
        loss = teaching.loss_of(
            F.normalize(head(images), dim=-1),
            labels,
            photos,
            geometry,
            log_scale.exp(),
            name_features,
            class_features,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return centered_into_bias(head, teaching.center), log_scale.exp().item()


@torch.no_grad()
def centered_into_bias(head: Mlp, center: torch.Tensor) -> Mlp:
    """W (x - c) + b = W x + (b - W c): the shipped head takes features as the trunk gives them."""
    head.fc1.bias -= head.fc1.weight @ center
    return head.eval()
