"""PyTorch against ONNX Runtime, on random and on real images and names.

The graphs are run on the CPU, from the very files that will be served. PyTorch's side is the
backbone as open_clip computes it: for names that is ``encode_text`` on padded token ids, so that
tokenizer, assembly, the shared prefix and the graph are all inside the comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from prompt_serve.assembly import PAD_ID, SequencePlan, assemble, plan_sequences
from prompt_serve.errors import ExportParityFailed
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes
from prompt_serve.training.backbone import Backbone
from prompt_serve.types import FloatArray, IntArray, PixelArray

Report = Callable[[str], None]

# Features have unit length, so one bar fits all widths. Two float32 implementations of the same
# tower differ by 1e-7 to 2e-6; a wrong mean, activation or mask by 1e-3 and more.
FP32_TOLERANCE = 1e-5

NAMES = (
    "cat",
    "Yorkshire terrier",
    "red-winged blackbird",
    "café crème brûlée",
    "Bücherregal",
    "O'Neill's sofa",
    "1984 Toyota MR2",
    "☂ umbrella",
    "a very long name of an unusually specific kind of thing",
)
TEMPLATES = ("a photo of a {}.", "{}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison: what was compared, how far it is off, and how far it may be."""

    name: str  # its key in the manifest
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # False for NaN


def check_parity(
    backbone: Backbone, image_encoder: Path, text_encoder: Path, *, report: Report
) -> dict[str, float]:
    """Compare both graphs with the backbone.

    Returns:
        The largest absolute differences, for the manifest.

    Raises:
        ExportParityFailed: at least one is above its limit; the message has all of them.
    """
    images = open_session(image_encoder)
    text = open_session(text_encoder)
    found = [
        *compare_images(backbone, images),
        *compare_names(backbone, text),
        compare_contexts(backbone, text),
    ]
    for difference in found:
        report(f"parity: {difference.name} {difference.value:.2e} (limit {difference.limit:.0e})")
    failed = [d for d in found if not d.passed]
    if failed:
        raise ExportParityFailed(
            "The exported graphs do not compute what the PyTorch model computes, "
            "so nothing was written: "
            + "; ".join(f"{d.name} is {d.value:.2e}, allowed {d.limit:.0e}" for d in failed)
            + ". This is a fault of the export or of a library version, not of your input.",
            differences={d.name: d.value for d in found},
        )
    return {d.name: d.value for d in found}


def compare_images(backbone: Backbone, session: onnxruntime.InferenceSession) -> list[Difference]:
    """Random pixels, and real images where the installation has its samples."""
    sets = {
        "image_random": random_pixels(backbone.preprocessing, count=3),
        "image_real": sample_pixels(backbone.preprocessing, count=5),
    }
    return [
        Difference(
            name=name,
            value=_largest(backbone.encode_images(torch.from_numpy(pixels)), run(session, pixels)),
            limit=FP32_TOLERANCE,
        )
        for name, pixels in sets.items()
        if len(pixels)
    ]


def compare_names(backbone: Backbone, session: onnxruntime.InferenceSession) -> list[Difference]:
    """Class names in templates, against ``encode_text`` of their padded token ids."""
    embedding = backbone.token_embedding.cpu().numpy()
    worst = 0.0
    for template in TEMPLATES:
        for names in (NAMES, NAMES[:1]):
            plan = plan_sequences(
                backbone.tokenizer,
                names,
                template,
                context_length=backbone.clip.context_length,
                causal=backbone.text_tower.causal,
            )
            ids = torch.from_numpy(padded_ids(plan, backbone.clip.context_length))
            with torch.inference_mode():
                expected = backbone.clip.encode_text(ids.to(backbone.device), normalize=True)
            sequences = assemble(plan, embedding)
            actual = session.run(None, vars(sequences))[0]
            worst = max(worst, _largest(expected, actual))
    return [Difference(name="text_names", value=worst, limit=FP32_TOLERANCE)]


def compare_contexts(backbone: Backbone, session: onnxruntime.InferenceSession) -> Difference:
    """Vectors that no token has, as learned ones are, in prefixes and suffixes of many lengths."""
    rng = np.random.default_rng(0)
    embedding = backbone.token_embedding.cpu().numpy()
    width, length = embedding.shape[1], backbone.clip.context_length
    causal = backbone.text_tower.causal
    worst = 0.0
    for p, c, s in ((1, 1, 2), (1, 5, 9), (5, 3, 4), (17, 2, 12)):
        s = s if causal else length - p
        scale = embedding.std()
        inputs = {
            "prefix": (rng.standard_normal((p, width)) * scale).astype(np.float32),
            "suffix": (rng.standard_normal((c, s, width)) * scale).astype(np.float32),
            "eot": rng.integers(0, s, size=c),
        }
        with torch.inference_mode():
            expected = backbone.text_tower(
                *(torch.from_numpy(array).to(backbone.device) for array in inputs.values())
            )
        worst = max(worst, _largest(expected, session.run(None, inputs)[0]))
    return Difference(name="text_contexts", value=worst, limit=FP32_TOLERANCE)


def padded_ids(plan: SequencePlan, context_length: int) -> IntArray:
    """The token ids of a plan without learned vectors, padded as CLIP pads: (C, context_length)."""
    ids = np.full((len(plan.suffix), context_length), PAD_ID, dtype=np.int64)
    p, s = len(plan.prefix), plan.suffix.shape[1]
    ids[:, :p] = plan.prefix
    ids[:, p : p + s] = plan.suffix
    return ids


def random_pixels(preprocessing: Preprocessing, *, count: int) -> PixelArray:
    """Noise: every channel and every place differs."""
    size = preprocessing.image_size
    shape = (count, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def sample_pixels(preprocessing: Preprocessing, *, count: int) -> PixelArray:
    """Up to ``count`` of the sample images that come with the package, spread over all of them."""
    folder = Path(str(resources.files("prompt_serve") / "assets" / "emoji"))
    paths = sorted(folder.glob("*/*/*.png"))
    chosen = paths[:: max(1, len(paths) // count)][:count]
    size = preprocessing.image_size
    pixels = np.zeros((len(chosen), size, size, 3), dtype=np.uint8)
    for image, path in zip(pixels, chosen, strict=True):
        image[:] = pixels_from_bytes(path.read_bytes(), preprocessing)
    return pixels


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A CPU session, whatever devices there are: the same figures on every machine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about nodes it chose to place elsewhere
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pixels: PixelArray) -> FloatArray:
    """(B, S, S, 3) uint8 pixels -> (B, E) image features, by a session of an image graph."""
    features: FloatArray = session.run(None, {"pixels": pixels})[0]
    return features


def _largest(expected: torch.Tensor, actual: FloatArray) -> float:
    return float(np.abs(expected.cpu().numpy() - actual).max(initial=0.0))
