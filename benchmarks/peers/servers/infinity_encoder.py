"""Image tower of infinity's CLIP (transformers' CLIPModel) alone, in batches of eight.

python -m benchmarks.peers.servers.infinity_encoder PHOTOGRAPHS SECONDS
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor  # type: ignore[import-not-found]

from benchmarks.peers.servers.alone import BATCH, print_alone


def main(photographs: Path, seconds: float) -> None:
    folder = Path(os.environ["PEER_WEIGHTS"]) / "transformers"
    model = CLIPModel.from_pretrained(folder).eval()
    if os.environ["PEER_PRECISION"] == "int8":  # as infinity does
        quantize = torch.quantization.quantize_dynamic  # type: ignore[attr-defined]
        model = quantize(model, {torch.nn.Linear}, dtype=torch.qint8)
    files = sorted(photographs.iterdir())[:BATCH]
    processor = CLIPProcessor.from_pretrained(folder)
    pixels = processor(images=list(map(Image.open, files)), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def encode() -> np.ndarray:
        features = model.get_image_features(pixels)
        found: np.ndarray = (features / features.norm(dim=-1, keepdim=True)).numpy()
        return found

    print_alone(encode, seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
