"""An exported backbone: a folder with the ONNX graphs and everything else that serving needs.

    manifest.json         what it is: backbone, sizes, preprocessing, parity figures, digests
    image_encoder.onnx    pixels (B, S, S, 3) uint8 -> image_features (B, E)
    text_encoder.onnx     the arrays of ``text_inputs`` -> class_features (C, E)
    token_embedding.npy   (V, D) float32, memory-mapped when read
    tokenizer.json        Hugging Face tokenizers

Features come out at unit length. ``precision`` is that of the image encoder. The text encoder is
float32 in every bundle: it runs once for each uploaded prompt, and its exactness is what the
probe checks. One graph serves prompts of every depth; its inputs, for a tower of L blocks:

    prefix            (P, D)       what all sequences start with, P >= 1
    suffix            (C, S, D)    what follows in each
    eot               (C,) int64   place of end-of-text within the suffix
    deeper            (L, P, D)    what block l reads in place of what the block before it gave,
    deeper_used       (L, P) bool  at the places of the prefix where this is true
    keys_values       (L, K, D)    rows that join the keys and values of block l (ADAPT),
    keys_values_used  (L, K) bool  those where this is true; K >= 1

Format 1 had the first three inputs only.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from prompt_serve.errors import BundleInvalid
from prompt_serve.files import sha256_of_file
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.class_features import TextSide
from prompt_serve.prompts.prompt_file import BackboneRef
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.types import FloatArray, Precision

BUNDLE_FORMAT = 2
MANIFEST = "manifest.json"
IMAGE_ENCODER = "image_encoder.onnx"
TEXT_ENCODER = "text_encoder.onnx"
TOKEN_EMBEDDING = "token_embedding.npy"  # noqa: S105 (no password)
TOKENIZER = "tokenizer.json"


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """What ``manifest.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    backbone: BackboneRef
    precision: Precision
    preprocessing: Preprocessing
    logit_scale: float  # 1 / temperature, already exponentiated
    causal_text: bool  # False: the text graph wants sequences padded to the context length
    text_layers: int  # blocks of the text tower
    parity: dict[str, float]  # largest differences from PyTorch, measured at export
    files: dict[str, FileDigest]
    created: str
    tool_version: str


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read and whose files are there."""

    path: Path
    manifest: Manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_json(self.path / TOKENIZER)

    @cached_property
    def token_embedding(self) -> FloatArray:
        """(V, D) float32, memory-mapped: only the rows that are used are read."""
        embedding: FloatArray = np.load(self.path / TOKEN_EMBEDDING, mmap_mode="r")
        return embedding

    @cached_property
    def text_side(self) -> TextSide:
        """What class features need beside the text graph."""
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
    def text_encoder(self) -> Path:
        return self.path / TEXT_ENCODER


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and, with ``verify``, check the digest of every file.

    Raises:
        BundleInvalid: missing, incomplete, damaged or of another format.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleInvalid(
            f"There is no bundle in {path} (no {MANIFEST}). "
            f"Make one with: prompt-serve export embedded -o {path}",
            path=str(path),
        )
    # Before all else: another format has other fields.
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
        raise BundleInvalid(
            f"{manifest_path} is not a manifest this version reads: {error}. "
            f"Export the backbone again.",
            path=str(path),
        ) from error
    for name, digest in manifest.files.items():
        _check_file(path / name, digest, verify=verify)
    return Bundle(path, manifest)


def bundle_format(path: Path) -> int | None:
    """The format that a bundle's manifest names; None where there is none to read."""
    try:
        fields = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    return version if isinstance(version, int) else None


def digest_file(path: Path) -> FileDigest:
    """sha256 and size of one file."""
    return FileDigest(sha256=sha256_of_file(path), size_bytes=path.stat().st_size)


def manifest_json(manifest: Manifest) -> str:
    """The content of ``manifest.json``."""
    return manifest.model_dump_json(indent=2) + "\n"


def _check_file(path: Path, wanted: FileDigest, *, verify: bool) -> None:
    facts: dict[str, Any] = {"path": str(path)}
    if not path.is_file():
        raise BundleInvalid(f"The bundle lacks {path}. Export the backbone again.", **facts)
    if path.stat().st_size != wanted.size_bytes or (verify and digest_file(path) != wanted):
        raise BundleInvalid(
            f"{path} is not the file the manifest describes (damaged or exchanged). "
            f"Export the backbone again.",
            **facts,
        )
