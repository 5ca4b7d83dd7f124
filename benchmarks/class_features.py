"""Time to compute class features: the exported text encoder against open_clip with 77 tokens.

    python benchmarks/class_features.py --backbone ViT-B-16/random --classes 100 --rounds 5

Both get the same class names in ``a photo of a {}.``; tokenizing and assembling are not timed. A
third graph without inputs for deeper blocks shows their cost in the exported one. The three
alternate within one run; figures are medians over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from prompt_serve.export.graphs import export_graph, text_graph
from prompt_serve.export.parity import padded_ids
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.prompts.sequences import assemble, plan_sequences
from prompt_serve.prompts.text_inputs import text_inputs
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.clip.text_tower import TextTower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32/random", help="as for prompt-serve export")
    parser.add_argument("--classes", type=int, default=100, help="number of classes, up to 1,000")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls per encoder")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of PyTorch and ONNX Runtime"
    )
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with quiet_libraries():
        backbone = load_backbone(options.backbone)
    session = text_session(text_graph(backbone), options.threads)
    shallow = text_session(shallow_graph(backbone), options.threads)
    length = backbone.clip.context_length
    # Every tenth name first: neighbors in ImageNet's list are similar (many dogs in a row).
    names = list(dict.fromkeys(IMAGENET_CLASSNAMES[::10] + IMAGENET_CLASSNAMES))[: options.classes]
    plan = plan_sequences(backbone.tokenizer, names, "a photo of a {}.", context_length=length)
    sequences = assemble(plan, backbone.token_embedding.numpy())
    inputs = text_inputs(sequences, backbone.text_tower.layers)
    three = {name: inputs[name] for name in ("prefix", "suffix", "eot")}
    ids = torch.from_numpy(padded_ids(plan, length))

    ours, without, padded = [], [], []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        (fast,) = session.run(None, inputs)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        (plain,) = shallow.run(None, three)
        without.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            slow = backbone.clip.encode_text(ids, normalize=True).numpy()
        padded.append(time.perf_counter() - start)

    our_s, without_s, padded_s = (statistics.median(s[1:]) for s in (ours, without, padded))
    print(f"{options.backbone}, {len(names)} classes, {options.threads} threads")
    print(f"padded to {length} tokens, PyTorch  {padded_s:8.3f} s")
    print(f"exported text encoder       {our_s:8.3f} s")
    print(f"  without deeper blocks     {without_s:8.3f} s")
    print(f"ratio {padded_s / our_s:.1f}, largest difference {np.abs(fast - slow).max():.1e}")
    print(f"deeper blocks cost {our_s / without_s - 1:+.1%}, {np.abs(fast - plain).max():.1e}")


class ShallowTextEncoder(nn.Module):
    """Text tower with prefix, suffix and EOT as its only inputs."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, prefix: Tensor, suffix: Tensor, eot: Tensor) -> Tensor:
        features: Tensor = self.tower(prefix, suffix, eot)
        return features


def shallow_graph(backbone: Backbone) -> onnx.ModelProto:
    width = backbone.token_embedding.shape[1]
    inputs = {
        "prefix": torch.zeros(5, width),
        "suffix": torch.zeros(3, 7, width),
        "eot": torch.tensor([6, 4, 5]),
    }
    axes = {"prefix": {0: "P"}, "suffix": {0: "C", 1: "S"}, "eot": {0: "C"}}
    encoder = ShallowTextEncoder(backbone.text_tower)
    return export_graph(encoder, inputs, axes=axes, outputs=("class_features",))


def text_session(graph: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.onnx"
        onnx.save(graph, path)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
