"""Seconds per training step of 32 images, ours against CoOp's loop, and the gradient difference.

The reference encodes its images and all class names, padded to 77 tokens, at every step. Ours
reads cached image features, runs the text tower once on the shared prefix, and skips everything
after end-of-text. Both run the same model on the same images, in alternation.

    python -m benchmarks.training_speed --model ViT-B-16 --classes 100 --steps 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.coop_reference import CoopReference
from prompt_serve.prompts.sequences import plan_sequences
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.clip.text_tower import PlanVectors

TEMPLATE, N_CTX = "a photo of a {}.", 4
ADJECTIVES = ("red", "small", "wild", "golden retriever and", "old", "striped", "wooden", "arctic")
NOUNS = ("cat", "teapot", "sports car", "chrysanthemum", "owl", "bridge", "cup", "airliner", "fox")


def class_names(count: int) -> list[str]:
    """Return names of one to a few words, as in real datasets."""
    pairs = [f"{a} {n}" for n in NOUNS for a in ADJECTIVES]
    names = [*NOUNS, *pairs, *(f"{pair} number {i}" for i, pair in enumerate(pairs))]
    return [names[i] if i < len(names) else f"class {i}" for i in range(count)]


def timed(step: Callable[[Tensor], Tensor], words: Tensor) -> tuple[float, Tensor]:
    """Return the seconds of a forward and backward pass, and the gradient of the context."""
    context = words.clone().requires_grad_()
    start = time.perf_counter()
    step(context).backward()  # type: ignore[no-untyped-call]
    if context.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    assert context.grad is not None
    return seconds, context.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-16", help="open_clip model, random weights")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    backbone = load_backbone(f"{arguments.model}/random").to(arguments.device)
    names = class_names(arguments.classes)
    size = backbone.preprocessing.image_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(arguments.batch, size, size, 3), dtype=np.uint8)
    labels = torch.from_numpy(rng.integers(0, len(names), size=arguments.batch))
    labels = labels.to(backbone.device)
    images = backbone.normalize(torch.from_numpy(pixels).to(backbone.device))
    features = backbone.encode_images(torch.from_numpy(pixels)).clone()

    reference = CoopReference(backbone.clip, names, TEMPLATE, N_CTX)
    plan = plan_sequences(
        backbone.tokenizer,
        names,
        TEMPLATE,
        context_length=backbone.ref.context_length,
        n_ctx=N_CTX,
    )
    vectors = PlanVectors(plan, backbone.token_embedding)

    def ours(context: Tensor) -> Tensor:
        class_features = backbone.text_tower(*vectors(context))
        return F.cross_entropy(backbone.logit_scale * features @ class_features.T, labels)

    def theirs(context: Tensor) -> Tensor:
        return reference.loss(context, images, labels)

    tokens = (len(plan.prefix), plan.suffix.shape[1])
    print(f"{arguments.model}, {len(names)} classes, batch {arguments.batch}, {backbone.device}")
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    print(
        f"tokens per class: {tokens[0]} shared + {tokens[1]}, "
        f"reference {backbone.clip.context_length}"
    )
    seconds: dict[str, list[float]] = {"ours": [], "CoOp": []}
    difference, largest = 0.0, 0.0
    for step in range(arguments.steps + 1):
        fast, gradient = timed(ours, reference.words)
        slow, expected = timed(theirs, reference.words)
        difference = max(difference, float((gradient - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        if step:  # the first step is a warm-up
            seconds["ours"].append(fast)
            seconds["CoOp"].append(slow)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:<5} {medians[name]:8.3f} s/step ({min(values):.3f} to {max(values):.3f})")
    print(f"ratio {medians['CoOp'] / medians['ours']:.1f}x (target: 20x)")
    print(f"largest gradient {largest:.2e}, largest difference {difference:.2e} (target: 1e-5)")


if __name__ == "__main__":
    main()
