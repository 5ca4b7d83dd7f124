"""Build a bundle: export the graphs, check them against PyTorch, then write the folder atomically.

A failed or interrupted export leaves an existing bundle unchanged.
"""

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch

import prompt_serve
from prompt_serve.bundle import (
    BUNDLE_FORMAT,
    IMAGE_ENCODER,
    IMAGE_ROWS,
    MANIFEST,
    OPENVINO_IMAGE_ENCODER,
    PROMPTED_IMAGE_ENCODER,
    TEXT_ENCODER,
    TOKEN_EMBEDDING,
    TOKENIZER,
    Bundle,
    Manifest,
    TowerSize,
    digest_file,
    manifest_json,
)
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.engines.openvino_images import OpenVinoImages
from prompt_serve.errors import BundleInvalid
from prompt_serve.export.graphs import (
    image_graph,
    prompted_image_graph,
    row_graph,
    text_graph,
)
from prompt_serve.export.openvino_int8 import quantize_for_openvino
from prompt_serve.export.parity import check_openvino, check_parity
from prompt_serve.export.quantize import quantize, quantized_share
from prompt_serve.export.samples import calibration_pixels
from prompt_serve.export.shared_weights import share_weights
from prompt_serve.files import atomic_folder
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import Precision


def export_bundle(
    backbone: Backbone,
    out: Path,
    *,
    precision: Precision = "fp32",
    openvino: bool = False,
    calibrate: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Manifest:
    """Export a backbone to a folder that ``bundle.open_bundle`` reads.

    Args:
        backbone: backbone from ``load_backbone``.
        out: folder to write. An existing bundle is replaced.
        precision: precision of the image encoder; the text encoder is always float32.
        openvino: check the image encoder in OpenVINO as well, and write its graph of an int8
            bundle; a bf16 bundle always needs it.
        calibrate: images that the int8 graph for OpenVINO is quantized with; None: those that are
            shipped.
        report: called with one line per step and per parity figure.

    Raises:
        DependencyMissing: OpenVINO or NNCF is needed and not installed.
        ProviderUnavailable: OpenVINO does not compute this precision on this machine.
        DatasetInvalid: there are no images to calibrate with.
        ExportParityFailed: the graphs differ from the PyTorch model; nothing was written.
        BundleInvalid: ``out`` exists and is not a bundle, or cannot be written.
    """
    report = report or (lambda line: None)
    out = out.resolve()  # of a symbolic link, the target is replaced, not the link
    check_target(out)
    # Readable for all: a service may run as another user.
    with _writable(out), atomic_folder(out, mode=0o755) as folder:
        _write_files(backbone, folder, precision, report)
        if openvino and precision == "int8":
            _write_openvino(backbone, folder / OPENVINO_IMAGE_ENCODER, calibrate, report)
        parity = check_parity(
            backbone,
            folder / IMAGE_ENCODER,
            folder / TEXT_ENCODER,
            precision="fp32" if precision == "bf16" else precision,
            report=report,
        )
        manifest = _manifest(backbone, folder, precision, parity)
        if precision == "bf16" or (openvino and precision != "fp16"):
            engine = OpenVinoImages(Bundle(folder, manifest), threads=available_cores())
            parity |= check_openvino(backbone, engine, report)
            manifest = manifest.model_copy(update={"parity": parity})
        (folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")
    return manifest


def _write_files(
    backbone: Backbone, folder: Path, precision: Precision, report: Callable[[str], None]
) -> None:
    report(f"exporting the image encoder ({precision})")
    _write_image_encoder(backbone, folder / IMAGE_ENCODER, precision, report)
    if backbone.takes_image_vectors:
        report("exporting the image encoder that takes learned vectors")
        _write_prompted_encoder(backbone, folder, precision)
    report("exporting the text encoder")
    onnx.save(text_graph(backbone), folder / TEXT_ENCODER)
    np.save(folder / TOKEN_EMBEDDING, backbone.token_embedding.cpu().numpy().astype("<f4"))
    (folder / TOKENIZER).write_text(backbone.tokenizer.to_json(), encoding="utf-8")


def _write_image_encoder(
    backbone: Backbone, path: Path, precision: Precision, report: Callable[[str], None]
) -> None:
    if precision != "int8":
        onnx.save(image_graph(backbone, _dtype(precision)), path)
        return
    model = image_graph(backbone)
    share = quantized_share(model)
    if share < 0.5:
        report(
            f"note: int8 quantizes matrix products, {share:.0%} of this image tower's weights; "
            f"its convolutions stay float32, so expect little gain over fp32"
        )
    quantize(model, path)


def _write_openvino(
    backbone: Backbone, path: Path, calibrate: Path | None, report: Callable[[str], None]
) -> None:
    images = calibration_pixels(backbone.preprocessing, calibrate)
    report(f"quantizing the image encoder for OpenVINO with {len(images)} images")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / IMAGE_ENCODER
        onnx.save(image_graph(backbone), graph)
        quantize_for_openvino(graph, path, images)


def _dtype(precision: Precision) -> torch.dtype:
    """Return the type in which the graph is exported; int8 is quantized afterwards."""
    return torch.float16 if precision == "fp16" else torch.float32


def _write_prompted_encoder(backbone: Backbone, folder: Path, precision: Precision) -> None:
    path = folder / PROMPTED_IMAGE_ENCODER
    model = prompted_image_graph(backbone, _dtype(precision))
    if precision == "int8":
        quantize(model, path)
        model = onnx.load(path)
    share_weights(model, folder / IMAGE_ENCODER)
    onnx.save(model, path)
    onnx.save(row_graph(backbone), folder / IMAGE_ROWS)


def _manifest(
    backbone: Backbone, folder: Path, precision: Precision, parity: dict[str, float]
) -> Manifest:
    return Manifest(
        format_version=BUNDLE_FORMAT,
        backbone=backbone.ref,
        former_fingerprint=backbone.former_fingerprint,
        precision=precision,
        preprocessing=backbone.preprocessing,
        logit_scale=backbone.logit_scale,
        causal_text=backbone.text_tower.causal,
        text_layers=backbone.text_tower.layers,
        image_tower=image_tower_size(backbone),
        parity=parity,
        files={path.name: digest_file(path) for path in sorted(folder.iterdir())},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tool_version=prompt_serve.__version__,
    )


def image_tower_size(backbone: Backbone) -> TowerSize | None:
    """Return the size of the image tower; None if it takes no learned vectors."""
    if not backbone.takes_image_vectors:
        return None
    return TowerSize(layers=backbone.image_tower.layers, width=backbone.image_tower.width)


def check_target(out: Path) -> None:
    """Raise BundleInvalid if ``out`` holds anything but a bundle."""
    if not out.exists() or (out / MANIFEST).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise BundleInvalid(
            f"{out} exists and is not a bundle, so it is left alone. "
            f"Choose another folder, or remove it first.",
            path=str(out),
        )


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleInvalid(
            f"The bundle cannot be written to {out}: {error}. Its former content is unchanged.",
            path=str(out),
        ) from error
