"""Check the file of a task against the service's encoder and scoring.

Features are compared with those of the bundle's encoder, within the limits of ``export.parity``.
Scores are compared with ``prompt_serve.scoring`` on the file's own features, which leaves float32
rounding alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import ExportParityFailed
from prompt_serve.export.samples import drawn_pixels, random_pixels, sample_pixels
from prompt_serve.export.task.encoder import TaskPrecision
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.scoring import calibrated, class_logits
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray, PixelArray

# As ``export.parity.IMAGE_LIMITS``, which needs torch: float32 implementations differ by up to
# 2e-6, seven-bit weights by up to 7e-3.
FEATURE_LIMITS: dict[TaskPrecision, float] = {"fp32": 1e-5, "int8": 3e-2}
COSINE_LIMITS: dict[TaskPrecision, float] = {"fp32": 1e-5, "int8": 1e-2}  # 1 - cosine
# Of float32 logits up to 100, the exponential is off by 1e-5.
PROBABILITY_LIMIT = 1e-4
Answers = dict[str, NDArray[Any]]


def check_task(
    path: Path,
    task: Task,
    encoders: Encoders,
    rows: ImageRows | None,
    precision: TaskPrecision,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Compare the file at ``path`` with the service; return the differences.

    Raises:
        ExportParityFailed: a difference is above its limit.
    """
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    features = cosine = scores = 0.0
    same = count = 0
    for pixels in _samples(encoders):
        own = answers_of(session, pixels)
        expected = _features(encoders, pixels, rows)
        found = own["image_features"]
        features = max(features, _largest(found, expected))
        cosine = max(cosine, float(np.max(1 - np.sum(found * expected, axis=1, dtype=np.float64))))
        scale = encoders.bundle.manifest.logit_scale
        scores = max(scores, _largest(own["probabilities"], probabilities_of(found, task, scale)))
        of_bundle = probabilities_of(expected, task, scale)
        same += int((own["probabilities"].argmax(1) == of_bundle.argmax(1)).sum())
        count += len(pixels)
    limits = {
        "features": (features, FEATURE_LIMITS[precision]),
        "cosine": (cosine, COSINE_LIMITS[precision]),
        "probabilities": (scores, PROBABILITY_LIMIT),
    }
    for name, (value, limit) in limits.items():
        report(f"parity: {name} {value:.1e} (limit {limit:.0e})")
    report(f"parity: {same} of {count} images have the service's best class")
    failed = [name for name, (value, limit) in limits.items() if not value <= limit]
    if failed:
        raise ExportParityFailed(
            "The file does not compute what the service computes, so nothing was written: "
            + "; ".join(
                f"{n} differ by {limits[n][0]:.1e}, allowed {limits[n][1]:.0e}" for n in failed
            )
            + (". Use --precision fp32." if precision == "int8" else "."),
            differences={name: value for name, (value, _) in limits.items()},
        )
    return {**{name: value for name, (value, _) in limits.items()}, "agreement": same / count}


def answers_of(session: ort.InferenceSession, pixels: PixelArray) -> Answers:
    """Run the file of a task; return its outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


def probabilities_of(features: FloatArray, task: Task, logit_scale: float) -> FloatArray:
    """Return the service's probabilities (B, C) of features (B, E)."""
    logits = class_logits(features, task.class_features, logit_scale)
    if task.label_scores is None:
        return calibrated(logits, task.temperature)
    return task.label_scores.probabilities(logits / np.float32(logit_scale))


def _features(encoders: Encoders, pixels: PixelArray, rows: ImageRows | None) -> FloatArray:
    if rows is None:
        return encoders.encode_pixels(pixels)
    return encoders.prompted.encode(pixels, [rows] * len(pixels))


def _samples(encoders: Encoders) -> list[PixelArray]:
    preprocessing = encoders.preprocessing
    sets = (
        random_pixels(preprocessing, count=3),
        drawn_pixels(preprocessing, classes=8, count=1)[0],
        sample_pixels(preprocessing, count=8),
    )
    return [pixels for pixels in sets if len(pixels)]


def _largest(found: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(found - expected).max())
