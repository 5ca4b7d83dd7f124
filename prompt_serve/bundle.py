"""Exported backbone: a folder with the ONNX graphs and everything else that serving needs.

    manifest.json                 backbone, sizes, preprocessing, parity figures, file digests
    image_encoder.onnx            pixels (B, S, S, 3) uint8 -> image_features (B, E)
    prompted_image_encoder.onnx   the same with vectors of each image's task; see below
    image_rows.onnx               a task's image vectors -> inputs of the prompted image graph
    text_encoder.onnx             the arrays of ``prompts.text_inputs`` -> class_features (C, E)
    openvino_image_encoder.xml    int8 for OpenVINO, its weights in the .bin beside it; optional
    token_embedding.npy           (V, D) float32, memory-mapped when read
    tokenizer.json                Hugging Face tokenizers

The prompted image graph and ``image_rows.onnx`` are there where the image tower is a plain vision
transformer; the prompted graph reads its weights from ``image_encoder.onnx``.

The shipped backbones are bundles as well, without a second copy of their weights: their manifest
names the safetensors file (``weights``) that the graphs and the token embeddings are read from, and
``text_from`` the folder beside it that has the text encoder, the embeddings and the tokenizer.

The encoders return features of unit length. ``precision`` is that of the image encoders; a ``bf16``
bundle has float32 graphs, which OpenVINO computes in bf16. The text encoder is float32 in every
bundle: it runs once per uploaded prompt, and the probe relies on its
accuracy.
One graph serves prompts of every depth. Its inputs, for a text tower of L blocks:

    prefix            (P, D)       embeddings that all sequences start with, P >= 1
    suffix            (C, S, D)    embeddings that follow, per class
    eot               (C,) int64   position of end-of-text within the suffix
    deeper            (L, P, D)    replace the input of block l at prefix positions
    deeper_used       (L, P) bool  True at the positions that are replaced
    keys_values       (L, K, D)    rows that join the keys and values of block l (ADAPT), K >= 1
    keys_values_used  (L, K) bool  True for the rows that join

The prompted image graph takes the vectors of every image apart, so that images of different tasks
share a batch. Its inputs beside the pixels, for an image tower of L blocks and width D:

    rows        (B, M, D)       rows that enter the sequence behind the patches, M >= 1
    rows_block  (B,) int64      block at whose input they enter; L: nowhere
    rows_used   (B, M) bool     True for the rows that there are
    keys        (L, B, R, D)    projected keys that join those of block l, R >= 1
    values      (L, B, R, D)    their values
    keys_used   (L, B, R) bool  True for those that there are

``prompts.image_rows`` lays them out with ``image_rows.onnx``, whose inputs are ``context`` (M, D),
vectors of the first block, and ``rows`` (L, R, D), rows of keys and values of every block; it
returns ``entering`` (M, D), the context behind the layer norm in front of the first block, and
``keys`` and ``values`` (L, R, D).

Format 1 had the first three inputs of the text graph only, format 2 no prompted image graph.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from prompt_serve.errors import BundleInvalid
from prompt_serve.files import sha256_of_file
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.class_features import TextSide
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.types import BackboneRef, FloatArray, Precision

BUNDLE_FORMAT = 3
MANIFEST = "manifest.json"
IMAGE_ENCODER = "image_encoder.onnx"
PROMPTED_IMAGE_ENCODER = "prompted_image_encoder.onnx"
IMAGE_ROWS = "image_rows.onnx"
OPENVINO_IMAGE_ENCODER = "openvino_image_encoder.xml"
TEXT_ENCODER = "text_encoder.onnx"
TOKEN_EMBEDDING = "token_embedding.npy"  # noqa: S105 (no password)
TOKENIZER = "tokenizer.json"
SHIPPED = ("embedded", "embedded-vit")  # backbones that come as bundles with the package
_IMAGE_FILES = (IMAGE_ENCODER, PROMPTED_IMAGE_ENCODER, IMAGE_ROWS)
_TEXT_FILES = (TEXT_ENCODER, TOKENIZER)
_EMBEDDING_TENSOR = "token_embedding.weight"
_SHOWN_REASON = 300  # characters of a library's error
# Far more than any CLIP has.
MAX_LAYERS, MAX_WIDTH, MAX_LOGIT_SCALE = 1_000, 100_000, 10_000.0
MAX_SIDE, MAX_CONTEXT = 4_096, 100_000  # pixels, tokens


def _check_plain_name(name: str) -> str:
    """Raise ValueError unless a name is that of a file or folder, without a path to it."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"{name!r} is no plain file name")
    return name


PlainName = Annotated[str, AfterValidator(_check_plain_name)]


class FileDigest(BaseModel):
    """Digest and size of one file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class TowerSize(BaseModel):
    """Size of a tower that takes learned vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1, le=MAX_LAYERS)  # L, blocks
    width: int = Field(ge=1, le=MAX_WIDTH)  # D


class Manifest(BaseModel):
    """Content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    backbone: BackboneRef
    precision: Precision
    preprocessing: Preprocessing
    logit_scale: float = Field(
        gt=0, le=MAX_LOGIT_SCALE, allow_inf_nan=False
    )  # 1 / temperature, already exponentiated
    causal_text: bool  # False: the text graph expects sequences padded to the context length
    text_layers: int = Field(ge=1, le=MAX_LAYERS)  # L, blocks of the text tower
    image_tower: TowerSize | None = None  # None: it takes no learned vectors
    parity: dict[str, float]  # largest differences from PyTorch, measured at export
    files: dict[PlainName, FileDigest]
    created: str
    tool_version: str
    weights: PlainName | None = (
        None  # safetensors file with the weights; None: the graphs have them
    )
    # The backbone's fingerprint in prompt files from before its settings counted, if another.
    former_fingerprint: str | None = None
    text_from: PlainName | None = None  # folder beside this one with the text side; None: this one


@dataclass(frozen=True)
class Bundle:
    """Bundle on disk, with its manifest read and its files present."""

    path: Path
    manifest: Manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        path = self._text_folder / TOKENIZER
        try:
            return Tokenizer.from_json(path)
        # The tokenizers library raises nothing more specific.
        except Exception as error:
            raise _unreadable(path, error) from error

    @cached_property
    def token_embedding(self) -> FloatArray:
        """Token embeddings (V, D) float32, memory-mapped unless stored in half precision."""
        path = self._text_folder / (self.manifest.weights or TOKEN_EMBEDDING)
        try:
            embedding = _token_embedding(path)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        shape, width = embedding.shape, self.manifest.backbone.text_width
        n_tokens = max(self.tokenizer.start_id, self.tokenizer.end_id) + 1
        if len(shape) != 2 or shape[0] < n_tokens or shape[1] != width:
            raise BundleInvalid(
                f"{path} has token embeddings {shape}; expected ({n_tokens:,} or more, {width}), "
                f"for the tokens of {TOKENIZER} and the width in {MANIFEST}. "
                f"Export the backbone again.",
                path=str(self.path),
            )
        return embedding

    @cached_property
    def text_side(self) -> TextSide:
        """Tokenizer, token embeddings and sizes: all that class features need besides the graph."""
        return TextSide(
            tokenizer=self.tokenizer,
            token_embedding=self.token_embedding,
            context_length=self.manifest.backbone.context_length,
            embed_dim=self.manifest.backbone.embed_dim,
            causal=self.manifest.causal_text,
        )

    @property
    def image_encoder(self) -> Path:
        return self.path / IMAGE_ENCODER

    @property
    def prompted_image_encoder(self) -> Path:
        return self.path / PROMPTED_IMAGE_ENCODER

    @property
    def openvino_image_encoder(self) -> Path | None:
        """Graph that OpenVINO runs; None if it has to be int8, and the bundle has none."""
        if self.manifest.precision != "int8":
            return self.image_encoder
        if OPENVINO_IMAGE_ENCODER in self.manifest.files:
            return self.path / OPENVINO_IMAGE_ENCODER
        return None

    @property
    def image_rows(self) -> Path:
        return self.path / IMAGE_ROWS

    @property
    def text_encoder(self) -> Path:
        return self._text_folder / TEXT_ENCODER

    @property
    def _text_folder(self) -> Path:
        return text_folder(self.path, self.manifest)


def shipped_bundle(name: str) -> Path:
    """Return the folder of a backbone that comes with the package; ``name`` is one of SHIPPED."""
    return Path(str(resources.files("prompt_serve") / "assets" / name))


def text_folder(path: Path, manifest: Manifest) -> Path:
    """Return the folder with the text side of the bundle in ``path``."""
    return path if manifest.text_from is None else path.parent / manifest.text_from


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and, with ``verify``, check the digest of every file.

    Raises:
        BundleInvalid: the bundle is missing, incomplete, damaged or of another format.
    """
    return _open(path, verify=verify)


def _open(path: Path, *, verify: bool, is_text_side: bool = False) -> Bundle:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleInvalid(
            f"There is no bundle in {path} (no {MANIFEST}). "
            f"Make one with: prompt-serve export BACKBONE -o {path}",
            path=str(path),
        )
    # First of all, because another format has other fields.
    version = bundle_format(path)
    if version not in (None, BUNDLE_FORMAT):
        raise BundleInvalid(
            f"{path} has bundle format {version}, this version reads {BUNDLE_FORMAT}. "
            f"Export the backbone again: prompt-serve export BACKBONE -o {path}",
            path=str(path),
        )
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]
        )
        raise BundleInvalid(
            f"{manifest_path} is not a manifest this version reads ({faults}). "
            f"Export the backbone again.",
            path=str(path),
        ) from error
    for name, digest in manifest.files.items():
        _check_file(path / name, digest, verify=verify)
    side = manifest.preprocessing.image_size
    if not 1 <= side <= MAX_SIDE or manifest.backbone.context_length > MAX_CONTEXT:
        raise BundleInvalid(
            f"{manifest_path} has images of {side:,} pixels and a context of "
            f"{manifest.backbone.context_length:,} tokens; at most {MAX_SIDE:,} and "
            f"{MAX_CONTEXT:,} are accepted. Export the backbone again.",
            path=str(path),
        )
    bundle = Bundle(path, manifest)
    if manifest.text_from is None:
        _check_listed(bundle, (*_TEXT_FILES, manifest.weights or TOKEN_EMBEDDING))
    else:
        if is_text_side:
            raise BundleInvalid(
                f"{path} is to be the text side of another bundle, and takes its own from "
                f"{manifest.text_from}. Export the backbone again.",
                path=str(path),
            )
        _open(text_folder(path, manifest), verify=verify, is_text_side=True)
    _check_listed(bundle, _IMAGE_FILES if manifest.image_tower else _IMAGE_FILES[:1])
    return bundle


def bundle_format(path: Path) -> int | None:
    """Return the format version in a bundle's manifest; None if there is no readable one."""
    try:
        fields = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    return version if isinstance(version, int) else None


def digest_file(path: Path) -> FileDigest:
    """Compute the sha256 and the size of a file."""
    return FileDigest(sha256=sha256_of_file(path), size_bytes=path.stat().st_size)


def manifest_json(manifest: Manifest) -> str:
    """Return the content of ``manifest.json``."""
    return manifest.model_dump_json(indent=2, exclude_none=True) + "\n"


def _token_embedding(path: Path) -> FloatArray:
    embedding: FloatArray
    if path.name == TOKEN_EMBEDDING:
        embedding = np.load(path, mmap_mode="r")
    else:
        with safe_open(path, framework="np") as weights:
            embedding = weights.get_tensor(_EMBEDDING_TENSOR).astype(np.float32)
    return embedding


def _unreadable(path: Path, error: Exception) -> BundleInvalid:
    reason = " ".join(str(error).split())[:_SHOWN_REASON]
    return BundleInvalid(
        f"{path} cannot be read: {reason}. Export the backbone again.", path=str(path.parent)
    )


def _check_listed(bundle: Bundle, names: Sequence[str]) -> None:
    """Raise BundleInvalid if a file that is used is not one whose digest was checked."""
    for name in names:
        if name not in bundle.manifest.files:
            raise BundleInvalid(
                f"{bundle.path / MANIFEST} does not list {name}. Export the backbone again.",
                path=str(bundle.path),
            )


def _check_file(path: Path, expected: FileDigest, *, verify: bool) -> None:
    if not path.is_file():
        raise BundleInvalid(f"The bundle lacks {path}. Export the backbone again.", path=str(path))
    if path.stat().st_size != expected.size_bytes or (verify and digest_file(path) != expected):
        raise BundleInvalid(
            f"{path} is not the file that the manifest describes (damaged or replaced). "
            f"Export the backbone again.",
            path=str(path),
        )
