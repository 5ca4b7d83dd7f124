"""Write a task as one ONNX file: pixels in, label and probabilities out.

    pixels (B, S, S, 3) uint8, RGB, of the tower's side S
    -> label or labels, probabilities, unknown, image_features (``scoring``)

Images are resized and cropped before, as ``metadata["preprocessing"]`` says: Pillow's filters,
which the backbones were trained with, exist neither in ONNX nor in a browser. The metadata also has
the class names, the prompt's name and version, the backbone and the parity figures. Equal prompts
and bundles give equal files.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from prompt_serve import __version__
from prompt_serve.bundle import Bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.errors import BundleInvalid
from prompt_serve.export.task.encoder import TaskPrecision, encoder_graph
from prompt_serve.export.task.parity import check_task
from prompt_serve.export.task.scoring import append_scoring
from prompt_serve.files import atomic_file
from prompt_serve.prompts.class_features import class_features, folded_image
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, version_of
from prompt_serve.tasks.admission import backbone_of, verified_class_features
from prompt_serve.tasks.task import Task

LARGEST_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True, kw_only=True)
class ExportedTask:
    """What was written."""

    metadata: dict[str, str]
    parity: dict[str, float]
    size_bytes: int


def export_task(
    data: bytes,
    bundle: Bundle,
    out: Path,
    *,
    precision: TaskPrecision,
    report: Callable[[str], None] = lambda line: None,
) -> ExportedTask:
    """Write the task of a prompt file.

    Args:
        data: content of the prompt file.
        bundle: its backbone.
        out: file to write; it is replaced after the new one has passed its checks.
        precision: precision of the image encoder.
        report: called with one line per parity figure.

    Raises:
        PromptError: the prompt cannot be served with this bundle.
        ConfigInvalid: the bundle cannot give this precision.
        ExportParityFailed: the file does not compute what the service computes.
        BundleInvalid: the encoder is too large for one ONNX file.
    """
    prompt = from_bytes(data)
    prompt = replace(prompt, backbone=backbone_of(prompt, bundle))
    encoders = Encoders.open(bundle, cuda_device=None, threads=available_cores())
    task = _task(prompt, version_of(data), encoders)
    model = encoder_graph(bundle, task.image_rows, precision)
    append_scoring(model, task, bundle.manifest.logit_scale)
    if model.ByteSize() > LARGEST_BYTES:
        raise BundleInvalid(
            f"The image encoder of {bundle.manifest.backbone.id!r} is larger than 2 GB, the limit "
            f"of one ONNX file. Use --precision int8, or serve the bundle.",
            path=str(bundle.path),
        )
    metadata = _metadata(prompt, task, bundle, precision)
    with atomic_file(out) as temporary:
        onnx.save(model, temporary)
        parity = check_task(temporary, task, encoders, task.image_rows, precision, report)
        figures = {name: f"{value:.1e}" for name, value in parity.items()}
        metadata["parity"] = json.dumps(figures)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, temporary)
    return ExportedTask(metadata=metadata, parity=parity, size_bytes=out.stat().st_size)


def _task(prompt: Prompt, version: str, encoders: Encoders) -> Task:
    """Make the task as the service makes it."""
    side = encoders.bundle.text_side
    features = verified_class_features(
        prompt, encoders.bundle, lambda: class_features(prompt, side, encoders.encode_text)
    )
    rows = None
    if prompt.image is not None:
        rows = encoders.prompted.lay_out(folded_image(prompt, side))
    return Task.from_prompt(version, prompt, features, rows)


def _metadata(
    prompt: Prompt, task: Task, bundle: Bundle, precision: TaskPrecision
) -> dict[str, str]:
    """Return the metadata of the file; values that are not texts are JSON."""
    facts: dict[str, Any] = {
        "name": prompt.name,
        "version": task.version,
        "class_names": list(task.class_names),
        "multi_label": prompt.multi_label,
        "method": prompt.method,
        "backbone": bundle.manifest.backbone.id,
        "fingerprint": bundle.manifest.backbone.fingerprint,
        "precision": precision,
        "preprocessing": asdict(bundle.manifest.preprocessing),
        "tool_version": f"prompt-serve {__version__}",
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in facts.items()
    }
