"""Training of CoOp's prompt, ours against CoOp's own loop: seconds per step, and both loss curves.

Both train the same prompt from the same numbers, on the same views in the same batches, with the
same optimizer, in alternation. CoOp's loop encodes its images and all class names, padded to 77
tokens, at every step. Ours looks image features up and runs the text tower on no token twice.
Class names are ImageNet's; weights are random, so that nothing is downloaded.

    python -m benchmarks.training_speed --backbone ViT-B-16/random --classes 100 --steps 5
    python -m benchmarks.training_speed --precision bf16
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor
from torch.nn import functional as F

from benchmarks.coop_reference import CoopReference
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.clip.frozen_towers import DTYPES
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import CachedImages
from prompt_serve.training.loop import Batch, Run
from prompt_serve.types import IntArray, PixelArray

TEMPLATE, N_CTX, VIEWS = "a photo of a {}.", 4, 2
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # CoOp's


def class_names(count: int) -> list[str]:
    """Return names of ImageNet, evenly spread."""
    names = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    return [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]


class Ours:
    """Our loop on cached features of all views."""

    def __init__(self, run: Run, pixels: PixelArray, labels: IntArray) -> None:
        self.run = run
        self.images = CachedImages(
            FeatureSet(features=features_of(run.backbone, pixels), labels=labels),
            run.backbone.device,
        )

    def step(self, batch: Batch) -> Tensor:
        return self.run.step(self.images, *batch)

    @property
    def gradient(self) -> Tensor:
        (context,) = self.run.learner.parameters()
        return _gradient(context)


class Theirs:
    """CoOp's loop, without our text tower, learner, batches or cache."""

    def __init__(
        self, backbone: Backbone, names: Sequence[str], pixels: PixelArray, labels: IntArray
    ) -> None:
        self.backbone, self.pixels = backbone, pixels
        self.labels = torch.from_numpy(labels).to(backbone.device)
        self.reference = CoopReference(backbone.clip, names, TEMPLATE, N_CTX)
        self.context = self.reference.words.clone().requires_grad_()
        self.optimizer = torch.optim.SGD(
            [self.context], lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def step(self, batch: Batch, learning_rate: float) -> Tensor:
        chosen, views, _ = batch
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        drawn = torch.from_numpy(self.pixels[chosen.numpy(), views.numpy()])
        images = self.backbone.normalize(drawn.to(self.backbone.device))
        loss = self.reference.loss(self.context, images, self.labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    @property
    def gradient(self) -> Tensor:
        return _gradient(self.context)


def _gradient(context: Tensor) -> Tensor:
    assert context.grad is not None
    return context.grad.detach().clone()


def features_of(backbone: Backbone, pixels: PixelArray) -> np.ndarray:
    """Encode all views once: (N, K, S, S, 3) to (N, K, E)."""
    size = backbone.batch_size
    flat = pixels.reshape(-1, *pixels.shape[2:])
    parts = [backbone.encode_pixels(flat[i : i + size]) for i in range(0, len(flat), size)]
    return np.concatenate(parts).reshape(*pixels.shape[:2], -1)


def timed(work: Callable[[], Tensor]) -> tuple[float, float, float]:
    """Return the loss, CPU seconds of all threads, and seconds of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    loss = float(work())  # waits for a GPU
    return loss, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="ViT-B-16/random", help="with CLIP's tokenizer")
    parser.add_argument("--classes", type=int, default=100, help="number of classes, up to 998")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32", help="of our tower")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    backbone = load_backbone(arguments.backbone).to(arguments.device)
    names = class_names(arguments.classes)
    size = backbone.preprocessing.image_size
    rng = np.random.default_rng(0)
    shape = (2 * arguments.batch, VIEWS, size, size, 3)
    pixels = rng.integers(0, 256, size=shape, dtype=np.uint8)
    labels = rng.integers(0, len(names), size=len(pixels))
    config = make_config(
        method="coop",
        template=TEMPLATE,
        n_ctx=N_CTX,
        epochs=arguments.steps // 2 + 1,
        batch_size=arguments.batch,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        precision=arguments.precision,
    )
    run = Run(backbone, names, config, learning_rate=arguments.learning_rate)
    ours, theirs = Ours(run, pixels, labels), Theirs(backbone, names, pixels, labels)

    tokens = len(run.vectors.rows.tokens)
    padded = len(names) * backbone.clip.context_length
    print(f"{backbone.id}, {len(names)} classes, batch {arguments.batch}, {backbone.device}")
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.precision}")
    print(f"tokens per step: {len(run.plan.prefix)} + {tokens}, CoOp's {padded}")
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "CoOp": []}
    curves: list[tuple[float, float]] = []
    differences, cosines, largest = [], [], 0.0
    for epoch in range(config.epochs):
        for batch in run.begin_epoch(epoch, ours.images):
            loss, *own = timed(partial(ours.step, batch))
            rate = run.rate_at(epoch)
            expected, *other = timed(partial(theirs.step, batch, rate))
            fast, slow = ours.gradient, theirs.gradient
            curves.append((loss, expected))
            differences.append(float((fast - slow).abs().max()))
            cosines.append(float(F.cosine_similarity(fast.flatten(), slow.flatten(), dim=0)))
            largest = max(largest, float(slow.abs().max()))
            if len(curves) > 1:  # the first step is a warm-up
                spent["ours"].append((own[0], own[1]))
                spent["CoOp"].append((other[0], other[1]))
    first, last = curves[0], curves[-1]
    print(f"loss  ours {first[0]:.6f} to {last[0]:.6f}, CoOp {first[1]:.6f} to {last[1]:.6f}")
    apart = max(abs(a - b) for a, b in curves)
    print(f"largest difference of the loss curves over {len(curves)} steps: {apart:.1e}")
    print(f"largest gradient {largest:.2e}, largest difference {max(differences):.1e}")
    print(f"smallest cosine of the gradients {min(cosines):.7f}")
    for index, clock in enumerate(("CPU seconds", "seconds")):
        median = {name: statistics.median(t[index] for t in spent[name]) for name in spent}
        print(f"{clock} per step: ours {median['ours']:.3f}, CoOp {median['CoOp']:.3f}")
        print(f"ratio {median['CoOp'] / median['ours']:.1f}x in {clock} (target: 20x)")


if __name__ == "__main__":
    main()
