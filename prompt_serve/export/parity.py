"""Check exported graphs against PyTorch, on random and real images and on class names.

The graphs run on the CPU, from the files that will be served. The reference is the backbone as
open_clip computes it. For class names that is ``encode_text`` on padded token ids, so that the
comparison covers tokenizer, assembly, shared prefix and graph.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from prompt_serve.bundle import IMAGE_ROWS, PROMPTED_IMAGE_ENCODER
from prompt_serve.engines.interface import ImageEngine
from prompt_serve.engines.onnx_images import PromptedImages
from prompt_serve.errors import ExportParityFailed
from prompt_serve.export.prompted_parity import prompted_difference
from prompt_serve.export.samples import (
    NAMES,
    TEMPLATES,
    drawn_pixels,
    random_pixels,
    sample_pixels,
)
from prompt_serve.prompts.sequences import PAD_ID, SequencePlan, Sequences, assemble, plan_sequences
from prompt_serve.prompts.text_inputs import text_inputs
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import FloatArray, IntArray, PixelArray, Precision

Report = Callable[[str], None]
EncodeImages = Callable[[PixelArray], FloatArray]  # pixels (B, S, S, 3) -> features (B, E)

# Features have unit length, so one limit fits all widths. Two float32 implementations of the same
# tower differ by 1e-7 to 2e-6; a wrong mean, activation or mask by at least 1e-3.
FP32_LIMIT = 1e-5
# Largest difference of one feature. float16 has 11 bits of precision and the errors of a dozen
# layers add up (3e-4 measured); seven-bit weights are off by 1 % each (up to 7e-3 measured). Larger
# differences are errors of the export, not rounding.
IMAGE_LIMITS: dict[Precision, float] = {
    "fp32": FP32_LIMIT,
    "bf16": 1e-2,  # eight bits of precision; 2e-3 measured
    "fp16": 5e-3,
    "int8": 3e-2,
}
# Share of the drawings that fall into another class, which is what users would notice. The goal is
# one in a hundred; three are tolerated, because a drawing between two classes may go either way.
DISAGREEMENT_LIMIT = 0.03
_CLASSES, _TO_LEARN, _TO_CLASSIFY = 20, 3, 5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Result of one comparison: measured value and limit."""

    name: str  # key in the manifest
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # False for NaN


def check_parity(
    backbone: Backbone,
    image_encoder: Path,
    text_encoder: Path,
    *,
    precision: Precision = "fp32",
    report: Report,
) -> dict[str, float]:
    """Compare both graphs with the backbone.

    Args:
        backbone: backbone that was exported.
        image_encoder: image graph; the prompted one is in the same folder.
        text_encoder: text graph.
        precision: precision of the image graph; of a bf16 bundle, that is float32.
        report: called with one line per comparison.

    Returns:
        The differences, for the manifest. ``image_random``, ``image_drawn``, ``image_real`` (if the
        package's sample images are installed), ``image_prompted`` (if the tower takes vectors),
        ``text_names``, ``text_contexts`` and ``text_deep`` are the largest differences of one
        feature. fp16 and int8 add ``image_cosine`` (1 - the smallest cosine) and
        ``image_disagreement`` (see ``disagreement``).

    Raises:
        ExportParityFailed: a difference is above its limit; the message lists all such differences.
    """
    images = partial(run, open_session(image_encoder))
    text = open_session(text_encoder)
    return _checked(
        [
            *compare_images(backbone, images, precision),
            *([] if precision == "fp32" else [disagreement(backbone, images)]),
            *compare_prompted(backbone, image_encoder.parent, precision),
            compare_names(backbone, text),
            compare_contexts(backbone, text),
            compare_deep(backbone, text),
        ],
        partial(_way_out, precision),
        report,
    )


def check_openvino(backbone: Backbone, engine: ImageEngine, report: Report) -> dict[str, float]:
    """Compare the image encoder that OpenVINO runs with the backbone, in the engine's precision.

    Returns:
        The differences, for the manifest: ``openvino_image_random`` and so on; see
        ``check_parity``.

    Raises:
        ExportParityFailed: a difference is above its limit.
    """
    differences = [
        *compare_images(backbone, engine.encode, engine.precision),
        disagreement(backbone, engine.encode),
    ]
    return _checked(
        [replace(one, name=f"{engine.name}_{one.name}") for one in differences],
        lambda _: "Export with --no-openvino, or choose other images with --calibrate.",
        report,
    )


def _checked(
    differences: Sequence[Difference],
    way_out: Callable[[list[Difference]], str],
    report: Report,
) -> dict[str, float]:
    for difference in differences:
        report(f"parity: {difference.name} {difference.value:.1e} (limit {difference.limit:.0e})")
    failed = [d for d in differences if not d.passed]
    if failed:
        raise ExportParityFailed(
            "The exported graphs do not compute what the PyTorch model computes, "
            "so nothing was written: "
            + "; ".join(f"{d.name} is {d.value:.1e}, allowed {d.limit:.0e}" for d in failed)
            + f". {way_out(failed)}",
            differences={d.name: d.value for d in differences},
        )
    return {d.name: d.value for d in differences}


def compare_images(
    backbone: Backbone, encode: EncodeImages, precision: Precision
) -> list[Difference]:
    """Compare random pixels, drawings and, if they are installed, the package's sample images."""
    sets = {
        "image_random": random_pixels(backbone.preprocessing, count=3),
        "image_drawn": drawn_pixels(backbone.preprocessing, classes=5, count=1)[0],
        "image_real": sample_pixels(backbone.preprocessing, count=5),
    }
    found, cosine = [], 1.0
    for name, pixels in sets.items():
        if len(pixels) == 0:
            continue
        expected = backbone.encode_images(torch.from_numpy(pixels)).cpu().numpy()
        actual = encode(pixels)
        limit = IMAGE_LIMITS[precision]
        found.append(Difference(name=name, value=_largest(expected, actual), limit=limit))
        cosine = min(cosine, float((expected * actual).sum(axis=1).min()))
    if precision != "fp32":
        found.append(Difference(name="image_cosine", value=1 - cosine, limit=0.01))
    return found


def compare_prompted(backbone: Backbone, folder: Path, precision: Precision) -> list[Difference]:
    """Compare images with learned vectors, where the image tower takes them."""
    if not backbone.takes_image_vectors:
        return []
    tower = backbone.image_tower
    graph = PromptedImages(
        folder / PROMPTED_IMAGE_ENCODER,
        folder / IMAGE_ROWS,
        layers=tower.layers,
        width=tower.width,
        open_graph=open_session,
    )
    value = prompted_difference(backbone, graph)
    return [Difference(name="image_prompted", value=value, limit=IMAGE_LIMITS[precision])]


def disagreement(backbone: Backbone, encode: EncodeImages) -> Difference:
    """Measure the share of drawings, 0 to 1, that are classified differently than in float32.

    There are twenty classes. Class features are means of float32 features, relative to the mean of
    all classes: features of a tower with random weights all point in nearly the same direction,
    so that without centering the result would be chance.
    """
    pixels, labels = drawn_pixels(
        backbone.preprocessing, classes=_CLASSES, count=_TO_LEARN + _TO_CLASSIFY
    )
    learn = np.arange(len(labels)) % (_TO_LEARN + _TO_CLASSIFY) < _TO_LEARN
    features = _in_batches(
        lambda p: backbone.encode_images(torch.from_numpy(p)).cpu().numpy(), pixels
    )
    center = features[learn].mean(axis=0)
    classes = unit(
        np.stack([features[learn & (labels == c)].mean(axis=0) for c in range(_CLASSES)]) - center
    )
    expected = ((features[~learn] - center) @ classes.T).argmax(axis=1)
    tested = _in_batches(encode, pixels[~learn])
    actual = ((tested - center) @ classes.T).argmax(axis=1)
    return Difference(
        name="image_disagreement",
        value=float((expected != actual).mean()),
        limit=DISAGREEMENT_LIMIT,
    )


def compare_names(backbone: Backbone, session: onnxruntime.InferenceSession) -> Difference:
    """Compare class names in templates with ``encode_text`` of their padded token ids."""
    embedding = backbone.token_embedding.cpu().numpy()
    length = backbone.clip.context_length
    worst = 0.0
    for template, names in ((TEMPLATES[0], NAMES), (TEMPLATES[1], NAMES), (TEMPLATES[0], NAMES[1])):
        plan = plan_sequences(
            backbone.tokenizer,
            [names] if isinstance(names, str) else names,
            template,
            context_length=length,
            causal=backbone.text_tower.causal,
        )
        ids = torch.from_numpy(padded_ids(plan, length)).to(backbone.device)
        with torch.inference_mode():
            expected = backbone.clip.encode_text(ids, normalize=True).cpu().numpy()
        actual = _run_text(backbone, session, assemble(plan, embedding))
        worst = max(worst, _largest(expected, actual))
    return Difference(name="text_names", value=worst, limit=FP32_LIMIT)


def compare_contexts(backbone: Backbone, session: onnxruntime.InferenceSession) -> Difference:
    """Compare random vectors, like learned ones, in prefixes and suffixes of several lengths."""
    vectors = _Random(backbone)
    return _compare_text(
        "text_contexts",
        backbone,
        session,
        [vectors.sequences(*sizes) for sizes in ((1, 1, 2), (1, 5, 9), (5, 3, 4), (17, 2, 12))],
    )


def compare_deep(backbone: Backbone, session: onnxruntime.InferenceSession) -> Difference:
    """Compare vectors for deeper blocks, and different numbers of keys and values per block."""
    vectors, layers = _Random(backbone), backbone.text_tower.layers
    half, full = (tuple(vectors(3) for _ in range(blocks)) for blocks in (layers // 2, layers - 1))
    uneven = tuple(vectors(1 + index % 3) for index in range(layers))
    with_gaps = tuple(vectors(5 * (index % 2)) for index in range(layers))
    return _compare_text(
        "text_deep",
        backbone,
        session,
        [
            vectors.sequences(4, 3, 5, deeper=half),
            vectors.sequences(5, 2, 5, deeper=full),
            vectors.sequences(3, 2, 6, keys_values=uneven),
            vectors.sequences(1, 1, 3, keys_values=with_gaps),
        ],
    )


def _compare_text(
    name: str,
    backbone: Backbone,
    session: onnxruntime.InferenceSession,
    cases: Iterable[Sequences],
) -> Difference:
    worst = max(
        _largest(backbone.encode_text(sequences), _run_text(backbone, session, sequences))
        for sequences in cases
    )
    return Difference(name=name, value=worst, limit=FP32_LIMIT)


class _Random:
    """Generator of random vectors with the scale of the backbone's token embeddings."""

    def __init__(self, backbone: Backbone) -> None:
        self._rng = np.random.default_rng(0)
        self._width = backbone.token_embedding.shape[1]
        self._scale = float(backbone.token_embedding.std())
        self._full_length = None if backbone.text_tower.causal else backbone.clip.context_length

    def __call__(self, *shape: int) -> FloatArray:
        """Generate vectors (..., D)."""
        numbers = self._rng.standard_normal((*shape, self._width)) * self._scale
        return numbers.astype(np.float32)

    def sequences(
        self,
        p: int,
        c: int,
        s: int,
        *,
        deeper: tuple[FloatArray, ...] = (),
        keys_values: tuple[FloatArray, ...] = (),
    ) -> Sequences:
        """Generate C sequences: prefix (P, D), suffix (C, S, D).

        For a tower that is not causal the suffix is as long as the context length requires.
        """
        s = s if self._full_length is None else self._full_length - p
        return Sequences(
            prefix=self(p),
            suffix=self(c, s),
            eot=self._rng.integers(0, s, size=c),
            deeper=deeper,
            keys_values=keys_values,
        )


def padded_ids(plan: SequencePlan, context_length: int) -> IntArray:
    """Return the token ids (C, context_length) of a plan without learned vectors, padded."""
    ids = np.full((len(plan.suffix), context_length), PAD_ID, dtype=np.int64)
    p, s = len(plan.prefix), plan.suffix.shape[1]
    ids[:, :p] = plan.prefix
    ids[:, p : p + s] = plan.suffix
    return ids


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a session on the CPU, so that figures are the same on every machine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; warnings are about nodes placed elsewhere
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pixels: PixelArray) -> FloatArray:
    """Run an image graph: pixels (B, S, S, 3) uint8 -> image features (B, E)."""
    features: FloatArray = session.run(None, {"pixels": pixels})[0]
    return features


def _run_text(
    backbone: Backbone, session: onnxruntime.InferenceSession, sequences: Sequences
) -> FloatArray:
    inputs = text_inputs(sequences, backbone.text_tower.layers)
    features: FloatArray = session.run(None, inputs)[0]
    return features


def _in_batches(encode: Callable[[PixelArray], FloatArray], pixels: PixelArray) -> FloatArray:
    # Small batches: 160 images at once would take gigabytes in a large tower.
    return np.concatenate([encode(pixels[i : i + 16]) for i in range(0, len(pixels), 16)])


def _largest(expected: FloatArray, actual: FloatArray) -> float:
    return float(np.abs(expected - actual).max(initial=0.0))


def _way_out(precision: Precision, failed: list[Difference]) -> str:
    if precision != "fp32" and all(d.name.startswith("image") for d in failed):
        return f"This backbone loses too much in {precision}: export it with --precision fp32."
    return "This is an error of the export or of a library version, not of your input."
