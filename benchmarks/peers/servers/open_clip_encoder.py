"""ViT-B/16 of open_clip with ten class vectors, as its README shows; shared by three servers.

    python -m benchmarks.peers.servers.open_clip_encoder PHOTOGRAPHS SECONDS

prints what the encoder alone reaches in batches of eight. The environment says which weights
(PEER_WEIGHTS: a folder with ``open_clip.pt`` and ``classes.npy``) and which PEER_PRECISION.
"""

import io
import os
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.servers.alone import BATCH, print_alone

MODEL = "ViT-B-16"


class Classifier:
    """Image tower, preprocessing and class vectors."""

    def __init__(self) -> None:
        folder = Path(os.environ["PEER_WEIGHTS"])
        bf16 = os.environ["PEER_PRECISION"] == "bf16"
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        model, _, self.preprocess = open_clip.create_model_and_transforms(
            MODEL, pretrained=str(folder / "open_clip.pt")
        )
        self.tower = model.visual.eval().requires_grad_(False).to(self.dtype)
        self.classes = torch.from_numpy(np.load(folder / "classes.npy"))  # (C, E), scaled

    def pixels(self, data: bytes) -> Tensor:
        return self.preprocess(Image.open(io.BytesIO(data)))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Encode (B, 3, S, S) pixels to (B, E) features of unit length."""
        return functional.normalize(self.tower(pixels.to(self.dtype)).float(), dim=-1)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Classify (B, 3, S, S) pixels; return (B, C)."""
        return (self.features(pixels) @ self.classes.T).softmax(dim=-1)


def main(photographs: Path, seconds: float) -> None:
    classifier = Classifier()
    files = sorted(photographs.iterdir())[:BATCH]
    pixels = torch.stack([classifier.pixels(path.read_bytes()) for path in files])
    print_alone(lambda: classifier.features(pixels).numpy(), seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
