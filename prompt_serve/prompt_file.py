"""A prompt and its file: one safetensors file, no pickle (``docs/prompt-file.md`` has every byte).

The tensors are the learned numbers and nothing else. Everything that explains them is one JSON
document in the header, under the metadata key ``prompt_serve``.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from prompt_serve.encodings import Encoding, encoding_from
from prompt_serve.errors import PromptFileInvalid
from prompt_serve.types import ClassPosition, HalfArray

FORMAT_VERSION = 1
METADATA_KEY = "prompt_serve"
MAX_FILE_BYTES = 64 * 2**20
MAX_CLASSES = 100_000
MAX_CLASS_NAME_CHARACTERS = 500


class BackboneRef(BaseModel):
    """Which backbone a prompt was learned on; enough to refuse it elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=500)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 over the weights
    text_width: int = Field(ge=1)  # D of the text tower
    embed_dim: int = Field(ge=1)  # E
    context_length: int = Field(ge=2)  # the longest sequence of the text tower, in tokens


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What was learned for one task, and all that is needed to use it.

    A template holds ``{}`` where the class name goes. A learned context stands in place of the
    tokens before the class name, so the template of a learned prompt has exactly M of them
    (``X X X X {}.`` where no words were kept). Without a learned context (zero-shot) there may
    be several templates; their class features are averaged.
    """

    name: str
    method: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    backbone: BackboneRef
    probe: HalfArray  # (C,)
    class_position: ClassPosition = "end"
    text: Encoding | None = None  # None: the template's own words, nothing learned
    training: Mapping[str, Any] = field(
        default_factory=dict
    )  # the configuration it was learned with
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""  # ISO 8601, UTC; empty where the same bytes must come out again
    tool_version: str = ""

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        check_templates(self.templates, learned=self.text is not None)
        if self.probe.shape != (len(self.class_names),) or self.probe.dtype != np.float16:
            raise PromptFileInvalid(
                f"The probe is {self.probe.dtype} {self.probe.shape}; "
                f"wanted float16 ({len(self.class_names)},), one number a class."
            )
        if not np.isfinite(self.probe).all():
            raise PromptFileInvalid("The probe holds NaN or infinite values.")
        if self.text is None:
            return
        if self.text.width != self.backbone.text_width:
            raise PromptFileInvalid(
                f"The context is {self.text.width} wide, but the text tower of "
                f"{self.backbone.id!r} is {self.backbone.text_width} wide."
            )
        if self.text.n_classes not in (None, len(self.class_names)):
            raise PromptFileInvalid(
                f"The class-specific context is for {self.text.n_classes} classes, "
                f"but the file names {len(self.class_names)}."
            )

    @property
    def learned_numbers(self) -> int:
        """How many numbers were learned."""
        return sum(t.size for t in self.text.tensors().values()) if self.text else 0

    @property
    def payload_bytes(self) -> int:
        """Bytes that the learned numbers take in the file, without its header."""
        return sum(t.nbytes for t in self.text.tensors().values()) if self.text else 0


class _BranchHeader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    encoding: str
    options: dict[str, str] = {}


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format_version: int
    name: str = Field(max_length=500)
    method: str = Field(min_length=1, max_length=100)
    class_names: list[str]
    templates: list[str]
    class_position: ClassPosition
    backbone: BackboneRef
    text: _BranchHeader | None
    probe: str  # base64 of C little-endian float16 numbers
    training: dict[str, Any]
    metrics: dict[str, Any]
    created: str
    tool_version: str


def to_bytes(prompt: Prompt) -> bytes:
    """Serialise; equal prompts give equal bytes."""
    text = prompt.text
    header = _Header(
        format_version=FORMAT_VERSION,
        name=prompt.name,
        method=prompt.method,
        class_names=list(prompt.class_names),
        templates=list(prompt.templates),
        class_position=prompt.class_position,
        backbone=prompt.backbone,
        text=_BranchHeader(encoding=text.kind, options=text.options()) if text else None,
        probe=base64.b64encode(prompt.probe.astype("<f2").tobytes()).decode("ascii"),
        training=dict(prompt.training),
        metrics=dict(prompt.metrics),
        created=prompt.created,
        tool_version=prompt.tool_version,
    )
    document = json.dumps(
        header.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    tensors = {f"text.{key}": np.ascontiguousarray(t) for key, t in _tensors(text).items()}
    return safetensors_numpy.save(tensors, {METADATA_KEY: document})


def from_bytes(data: bytes) -> Prompt:
    """Read a prompt file, checking it whole.

    Raises:
        PromptFileInvalid: it is not one, is damaged, or contradicts itself; the message says how.
    """
    if len(data) > MAX_FILE_BYTES:
        raise PromptFileInvalid(
            f"The file has {len(data):,} bytes; a prompt file has at most {MAX_FILE_BYTES:,}."
        )
    header = _read_header(data)
    try:
        tensors = safetensors_numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PromptFileInvalid(f"The tensors cannot be read: {error}") from error
    return Prompt(
        name=header.name,
        method=header.method,
        class_names=tuple(header.class_names),
        templates=tuple(header.templates),
        class_position=header.class_position,
        backbone=header.backbone,
        text=_read_encoding(header.text, tensors),
        probe=_read_probe(header.probe),
        training=header.training,
        metrics=header.metrics,
        created=header.created,
        tool_version=header.tool_version,
    )


def write_prompt_file(prompt: Prompt, path: Path) -> bytes:
    """Write atomically: the path holds the old file or the whole new one, never a part of it."""
    data = to_bytes(prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
    return data


def read_prompt_file(path: Path) -> Prompt:
    """Read a prompt file from disk; see ``from_bytes``."""
    if not path.is_file():
        raise PromptFileInvalid(f"There is no file {path}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PromptFileInvalid(
            f"{path} has {path.stat().st_size:,} bytes; a prompt file has at most "
            f"{MAX_FILE_BYTES:,}."
        )
    return from_bytes(path.read_bytes())


def version_of(data: bytes) -> str:
    """The identity of a prompt: sha256 of its file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_class_names(class_names: tuple[str, ...]) -> None:
    """Raise PromptFileInvalid unless there are 1 to 100,000 distinct, sensible names."""
    if not class_names:
        raise PromptFileInvalid("There are no class names.")
    if len(class_names) > MAX_CLASSES:
        raise PromptFileInvalid(
            f"There are {len(class_names):,} class names; at most {MAX_CLASSES:,} are accepted."
        )
    for index, name in enumerate(class_names):
        if not name.strip():
            raise PromptFileInvalid(f"Class name {index} is blank.")
        if len(name) > MAX_CLASS_NAME_CHARACTERS:
            raise PromptFileInvalid(
                f"Class name {index} has {len(name):,} characters; "
                f"at most {MAX_CLASS_NAME_CHARACTERS} are accepted: {name[:60]!r}..."
            )
    if len(set(class_names)) < len(class_names):
        seen: set[str] = set()
        twice = sorted({n for n in class_names if n in seen or seen.add(n)})  # type: ignore[func-returns-value]  # set.add returns None: falsy on purpose
        raise PromptFileInvalid(f"Class names occur more than once: {', '.join(twice[:10])}.")


def check_templates(templates: tuple[str, ...], *, learned: bool) -> None:
    """Raise PromptFileInvalid unless each template has one ``{}``; a learned prompt has one."""
    if not templates or (learned and len(templates) != 1):
        raise PromptFileInvalid(
            f"There are {len(templates)} templates; a learned prompt has exactly one, "
            f"a zero-shot prompt one or more."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise PromptFileInvalid(
                f"Template {template!r} must hold '{{}}' once, where the class name goes, "
                f"as in 'a photo of a {{}}.'."
            )


def _tensors(text: Encoding | None) -> dict[str, HalfArray]:
    return text.tensors() if text else {}


def _read_header(data: bytes) -> _Header:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise PromptFileInvalid(
            f"Not a prompt file: the {len(data):,} bytes are no safetensors file, "
            f"or it is cut short."
        )
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        document = metadata[METADATA_KEY]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise PromptFileInvalid(
            f"Not a prompt file: no metadata {METADATA_KEY!r} in a safetensors header ({error!r})."
        ) from error
    try:
        fields = json.loads(document)
        # What cannot be written again (NaN, infinity, half a surrogate pair) is not let in: it
        # would break whoever passes it on.
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise PromptFileInvalid(
                f"The file has format version {version!r}; this prompt-serve reads "
                f"{FORMAT_VERSION}. Update prompt-serve, or train the prompt again."
            )
        return _Header.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:10]
        )
        raise PromptFileInvalid(f"The header is not valid: {faults}.") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise PromptFileInvalid(f"The header is not valid JSON: {error}.") from error


def _read_encoding(branch: _BranchHeader | None, tensors: Mapping[str, Any]) -> Encoding | None:
    strangers = sorted(key for key in tensors if not key.startswith("text."))
    if strangers or (branch is None and tensors):
        raise PromptFileInvalid(f"The file holds tensors nobody explains: {sorted(tensors)}.")
    if branch is None:
        return None
    named = {key.removeprefix("text."): tensor for key, tensor in tensors.items()}
    return encoding_from(branch.encoding, named, branch.options)


def _read_probe(encoded: str) -> HalfArray:
    try:
        raw = base64.b64decode(encoded, validate=True)
        return np.frombuffer(raw, dtype="<f2").astype(np.float16)
    except (binascii.Error, ValueError) as error:
        raise PromptFileInvalid(f"The probe is not base64 of float16 numbers: {error}.") from error
