"""Prompt and prompt file: one safetensors file, no pickle (specified in ``docs/prompt-file.md``).

The tensors are the learned numbers and nothing else. Everything that describes them is one JSON
document in the header, under the metadata key ``prompt_serve``.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from prompt_serve.errors import PromptFileInvalid, counted
from prompt_serve.files import atomic_file
from prompt_serve.prompts.class_vectors import (
    ClassVectors,
    ImageSketch,
    LabelVectors,
    image_encoding_from,
)
from prompt_serve.prompts.encodings import (
    Deep,
    Dense,
    Encoding,
    ImageEncoding,
    LowRank,
    Projected,
    PrunedKeyValues,
    StoredEncoding,
    TextEncoding,
    encoding_from,
)
from prompt_serve.prompts.quantized_tensor import BITS, QuantizedTensor, StoredTensor, pack, unpack
from prompt_serve.prompts.wrong_files import (
    MAX_TENSORS,
    depth_excess,
    describe_wrong_file,
    header_excess,
    header_of,
    json_excess,
)
from prompt_serve.text_files import is_utf8
from prompt_serve.types import BackboneRef, ClassPosition, HalfArray

FORMAT_VERSION = 3  # the newest version that is read
PLAIN_VERSION = 1  # written if the prompt needs nothing newer, so that old readers can read it
# Fields of the header by the version that added them; a file has those of its version and older.
_ADDED_FIELDS: dict[int, tuple[str, ...]] = {
    2: ("image", "temperature", "unknown_below"),
    3: ("classes", "sketch", "unlike_below"),
}
_BRANCHES = ("text", "image", "classes", "sketch")
METADATA_KEY = "prompt_serve"
MAX_FILE_BYTES = 64 * 2**20
MAX_NUMBERS = MAX_FILE_BYTES  # of coded tensors together; of one bit, 512 times 2**20 would fit
MAX_CLASSES = 100_000
MAX_CLASS_NAME_CHARACTERS = 500
MAX_TEMPLATE_CHARACTERS = 2_000  # far more than the 77 tokens of the text tower


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Learned context of one task, with all that is needed to use it.

    A template has ``{}`` in the place of the class name. A learned context replaces the first M
    tokens before the class name, so the template of a learned prompt has at least M tokens there
    (``X X X X {}.`` if it has no words). Without a learned context (zero-shot) there may be several
    templates; their class features are averaged.

    A task learned in closed form has class vectors in place of a context, and takes no new names.

    Probabilities are ``softmax(logits / temperature)``; those of label vectors are independent of
    each other and need no temperature. An image is unknown, it shows none of the
    classes, if its largest probability is below ``unknown_below`` or if its cosine to every
    direction of the sketch is below ``unlike_below``.
    """

    name: str
    method: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    backbone: BackboneRef
    probe: HalfArray  # (C,)
    class_position: ClassPosition = "end"
    text: TextEncoding | None = None  # None: nothing learned, the template's words are used
    image: ImageEncoding | None = None  # None: nothing learned, the image tower is unchanged
    temperature: float = 1.0  # fitted on validation images (Guo et al. 2017, section 4.2)
    unknown_below: float = 0.0  # a probability; 0: no image is unknown
    classes: ClassVectors | LabelVectors | None = None  # instead of a context
    sketch: ImageSketch | None = None  # of the training images
    unlike_below: float = -1.0  # a cosine; -1: no image is unlike the sketch
    training: Mapping[str, Any] = field(default_factory=dict)  # configuration of the training
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""  # ISO 8601, UTC; empty for reproducible bytes
    tool_version: str = ""

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        check_templates(self.templates, learned=bool(self.encodings))
        if self.probe.shape != (len(self.class_names),) or self.probe.dtype != np.float16:
            raise PromptFileInvalid(
                f"The probe is {self.probe.dtype} {self.probe.shape}; "
                f"expected float16 ({len(self.class_names)},), one number per class."
            )
        if not np.isfinite(self.probe).all():
            raise PromptFileInvalid("The probe has NaN or infinite values.")
        if not (1e-3 <= self.temperature <= 1e3 and 0.0 <= self.unknown_below < 1.0):
            raise PromptFileInvalid(
                f"The temperature is {self.temperature!r} and the threshold for unknown images "
                f"{self.unknown_below!r}; expected 0.001 to 1,000, and 0 to less than 1."
            )
        self._check_text()
        self._check_image()
        self._check_classes()

    def _check_text(self) -> None:
        text = self.text
        if text is None:
            return
        if isinstance(text, Projected):
            raise PromptFileInvalid("The text branch cannot be 'projected'.")
        if text.width != self.backbone.text_width:
            raise PromptFileInvalid(
                f"The context is {text.width} wide, but the text tower of "
                f"{self.backbone.id!r} is {self.backbone.text_width} wide."
            )
        if text.n_classes not in (None, len(self.class_names)):
            raise PromptFileInvalid(
                f"The class-specific context is for {counted(text.n_classes, 'class')}, "
                f"but the file names {len(self.class_names)}."
            )
        if isinstance(text, Deep) and self.class_position != "end":
            raise PromptFileInvalid("A deep context needs the class name at the end.")

    def _check_image(self) -> None:
        image = self.image
        layers = image.layers if isinstance(image, Deep) else (image,)
        for layer in layers:
            if layer is None or isinstance(layer, PrunedKeyValues | Projected):
                continue
            shared = isinstance(layer, Dense | LowRank) and layer.n_classes is None
            if not shared or (isinstance(layer, LowRank) and layer.base != "none"):
                raise PromptFileInvalid(
                    "The vectors of the image branch must be shared by all classes and must not "
                    "build on the template's words."
                )
        has_shared = isinstance(self.text, Dense | LowRank | Deep) and self.text.n_classes is None
        if isinstance(image, Projected) and not has_shared:
            raise PromptFileInvalid(
                "A projected image branch needs a context in the text branch that all classes "
                "share."
            )

    def _check_classes(self) -> None:
        if not isinstance(self.classes, ClassVectors | LabelVectors | None) or not isinstance(
            self.sketch, ImageSketch | None
        ):
            raise PromptFileInvalid(
                "'classes' holds class or label vectors, and 'sketch' an image sketch."
            )
        if self.classes is not None:
            if self.text is not None or self.image is not None:
                raise PromptFileInvalid(
                    "Class vectors stand alone: the text and image branches must be empty."
                )
            if self.classes.n_classes != len(self.class_names):
                raise PromptFileInvalid(
                    f"There are class vectors for {counted(self.classes.n_classes, 'class')}, "
                    f"but the file names {len(self.class_names)}. Class vectors take no further "
                    f"names; train with all classes, or train a prompt."
                )
        if self.multi_label and (self.temperature, self.unknown_below) != (1.0, 0.0):
            raise PromptFileInvalid(
                f"Label vectors have thresholds of their own, but the file has temperature "
                f"{self.temperature!r} and unknown_below {self.unknown_below!r}; expected 1 and 0."
            )
        for encoding in (self.classes, self.sketch):
            if encoding is not None and encoding.width != self.backbone.embed_dim:
                raise PromptFileInvalid(
                    f"The {encoding.kind.replace('_', ' ')} is {encoding.width} wide, but the "
                    f"features of {self.backbone.id!r} are {self.backbone.embed_dim} wide."
                )
        if not -1.0 <= self.unlike_below < 1.0:
            raise PromptFileInvalid(
                f"The threshold for images unlike the sketch is {self.unlike_below!r}; "
                f"expected a cosine from -1 to less than 1."
            )
        if self.unlike_below > -1.0 and self.sketch is None:
            raise PromptFileInvalid(
                f"There is a threshold for unlike images ({self.unlike_below!r}), but no sketch."
            )

    @property
    def multi_label(self) -> bool:
        """True if an image may have several of the classes, or none."""
        return isinstance(self.classes, LabelVectors)

    @property
    def encodings(self) -> dict[str, Encoding | ClassVectors | LabelVectors]:
        """Encodings of what was learned: "text" and "image" contexts, or "classes"."""
        branches: dict[str, Encoding | ClassVectors | LabelVectors | None] = {
            "text": self.text,
            "image": self.image,
            "classes": self.classes,
        }
        return {branch: encoding for branch, encoding in branches.items() if encoding is not None}

    @property
    def tensors(self) -> dict[str, StoredTensor | NDArray[np.uint8]]:
        """Tensors by their names in the file, for example ``text.p_a``."""
        sketch = {} if self.sketch is None else {"sketch": self.sketch}
        return {
            f"{branch}.{name}": tensor
            for branch, encoding in (self.encodings | sketch).items()
            for name, tensor in encoding.tensors().items()
        }

    @property
    def learned_numbers(self) -> int:
        """Number of learned numbers; the sketch is measured, not learned."""
        return sum(
            t.size
            for encoding in self.encodings.values()
            for t in encoding.tensors().values()
            if isinstance(t, QuantizedTensor) or t.itemsize == 2
        )

    @property
    def payload_bytes(self) -> int:
        """Bytes of the tensors in the file, without its header."""
        return sum(t.nbytes for t in self.tensors.values())


class _QuantizedHeader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bits: int
    shape: list[int]


class _BranchHeader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    encoding: str
    options: dict[str, Any] = {}
    coded: dict[str, _QuantizedHeader] | None = None  # the quantized tensors


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
    # Since version 2.
    image: _BranchHeader | None = None
    temperature: float = 1.0
    unknown_below: float = 0.0
    # Since version 3.
    classes: _BranchHeader | None = None
    sketch: _BranchHeader | None = None
    unlike_below: float = -1.0


def to_bytes(prompt: Prompt) -> bytes:
    """Serialize a prompt. Equal prompts give equal bytes."""
    header = _Header(
        format_version=_version_needed(prompt),
        name=prompt.name,
        method=prompt.method,
        class_names=list(prompt.class_names),
        templates=list(prompt.templates),
        class_position=prompt.class_position,
        backbone=prompt.backbone,
        text=_branch_header(prompt.text),
        probe=base64.b64encode(prompt.probe.astype("<f2").tobytes()).decode("ascii"),
        training=dict(prompt.training),
        metrics=dict(prompt.metrics),
        created=prompt.created,
        tool_version=prompt.tool_version,
        image=_branch_header(prompt.image),
        temperature=prompt.temperature,
        unknown_below=prompt.unknown_below,
        classes=_branch_header(prompt.classes),
        sketch=_branch_header(prompt.sketch),
        unlike_below=prompt.unlike_below,
    )
    fields = header.model_dump(mode="json")
    for name in _fields_after(header.format_version):
        del fields[name]
    for branch in _BRANCHES:
        if fields.get(branch) and fields[branch]["coded"] is None:
            del fields[branch]["coded"]
    document = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    arrays = {
        key: np.ascontiguousarray(array)
        for name, tensor in prompt.tensors.items()
        for key, array in _arrays(name, tensor).items()
    }
    return safetensors_numpy.save(arrays, {METADATA_KEY: document})


def from_bytes(data: bytes) -> Prompt:
    """Read and check the content of a prompt file.

    Raises:
        PromptFileInvalid: the data is not a prompt file, is damaged, or contradicts itself; the
            message gives the reason.
    """
    if len(data) > MAX_FILE_BYTES:
        raise PromptFileInvalid(
            f"The file has {len(data):,} bytes; a prompt file has at most {MAX_FILE_BYTES:,}."
        )
    header = _read_header(data)
    _check_numbers(header)
    try:
        arrays = safetensors_numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PromptFileInvalid(f"The tensors cannot be read: {error}") from error
    unknown = sorted(key for key in arrays if key.partition(".")[0] not in _BRANCHES)
    if unknown:
        raise PromptFileInvalid(f"The file contains unexpected tensors: {unknown}.")
    text, image, classes, sketch = (
        _read_branch(branch, getattr(header, branch), arrays) for branch in _BRANCHES
    )
    return Prompt(
        name=header.name,
        method=header.method,
        class_names=tuple(header.class_names),
        templates=tuple(header.templates),
        class_position=header.class_position,
        backbone=header.backbone,
        text=text,  # type: ignore[arg-type]  # Prompt checks which encodings a branch may have
        image=image,  # type: ignore[arg-type]
        temperature=header.temperature,
        unknown_below=header.unknown_below,
        classes=classes,  # type: ignore[arg-type]
        sketch=sketch,  # type: ignore[arg-type]
        unlike_below=header.unlike_below,
        probe=_read_probe(header.probe),
        training=header.training,
        metrics=header.metrics,
        created=header.created,
        tool_version=header.tool_version,
    )


def thresholds_of(prompt: Prompt) -> list[float] | None:
    """Return the threshold of each label of a multi-label prompt; None for any other."""
    if not isinstance(prompt.classes, LabelVectors):
        return None
    return [float(threshold) for threshold in prompt.classes.thresholds]


def write_prompt_file(
    prompt: Prompt, path: Path, signed: Callable[[bytes], bytes] | None = None
) -> bytes:
    """Write a prompt file atomically; returns its content.

    Args:
        prompt: what it holds.
        path: file to write.
        signed: adds a signature to the content; by default there is none.
    """
    data = to_bytes(prompt)
    if signed is not None:
        data = signed(data)
    with atomic_file(path, mode=0o644, sync=True) as temporary:
        temporary.write_bytes(data)
    return data


def read_prompt_file(path: Path) -> Prompt:
    """Read a prompt file from disk.

    Raises:
        PromptFileInvalid: there is no such file, or its content is invalid (see ``from_bytes``).
    """
    if not path.is_file():
        raise PromptFileInvalid(f"There is no file {path}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PromptFileInvalid(
            f"{path} has {path.stat().st_size:,} bytes; a prompt file has at most "
            f"{MAX_FILE_BYTES:,}."
        )
    return from_bytes(path.read_bytes())


def version_of(data: bytes) -> str:
    """Return the version of a prompt: the sha256 of its file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_class_names(class_names: tuple[str, ...]) -> None:
    """Raise PromptFileInvalid unless there are 1 to 100,000 distinct names of sensible length."""
    if not class_names:
        raise PromptFileInvalid("There are no class names.")
    if len(class_names) > MAX_CLASSES:
        raise PromptFileInvalid(
            f"There are {len(class_names):,} class names; at most {MAX_CLASSES:,} are accepted."
        )
    for index, name in enumerate(class_names):
        if not name.strip():
            raise PromptFileInvalid(f"Class name {index} is blank.")
        if not is_utf8(name):
            raise PromptFileInvalid(
                f"Class name {name!r} is not UTF-8 text; rename its folder or save its table as "
                f"UTF-8."
            )
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
    """Raise PromptFileInvalid unless each template has one ``{}``.

    A learned prompt has exactly one template, a zero-shot prompt one or more.
    """
    if not templates or (learned and len(templates) != 1):
        raise PromptFileInvalid(
            f"There are {len(templates)} templates; a learned prompt has exactly one, "
            f"a zero-shot prompt one or more."
        )
    for template in templates:
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise PromptFileInvalid(
                f"A template has {len(template):,} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS:,} are accepted: {template[:60]!r}..."
            )
        if template.count("{}") != 1:
            raise PromptFileInvalid(
                f"Template {template!r} must hold '{{}}' once, in the place of the class name, "
                f"as in 'a photo of a {{}}.'."
            )


def _version_needed(prompt: Prompt) -> int:
    plain = prompt.text is None or (
        isinstance(prompt.text, Dense | LowRank)
        and not any(
            isinstance(tensor, QuantizedTensor) for tensor in prompt.text.tensors().values()
        )
    )
    calibrated = (prompt.temperature, prompt.unknown_below) != (1.0, 0.0)
    if prompt.classes is not None or prompt.sketch is not None:
        return 3
    return PLAIN_VERSION if plain and prompt.image is None and not calibrated else 2


def _fields_after(version: int) -> list[str]:
    """Return the header fields that came with later versions."""
    return [name for added, names in _ADDED_FIELDS.items() if added > version for name in names]


def _branch_header(encoding: StoredEncoding | None) -> _BranchHeader | None:
    if encoding is None:
        return None
    quantized = {
        name: _QuantizedHeader(bits=tensor.bits, shape=list(tensor.shape))
        for name, tensor in encoding.tensors().items()
        if isinstance(tensor, QuantizedTensor)
    }
    return _BranchHeader(
        encoding=encoding.kind, options=encoding.options(), coded=quantized or None
    )


def _arrays(name: str, tensor: StoredTensor | NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the arrays that represent one tensor in the file."""
    if isinstance(tensor, QuantizedTensor):
        packed = pack(tensor.indices, tensor.bits)
        return {f"{name}.indices": packed, f"{name}.codebook": tensor.codebook}
    return {name: tensor}


def check_kind(data: bytes) -> None:
    """Raise PromptFileInvalid if ``data`` is a file of another kind, with what it is."""
    _header_document(data)


def _header_document(data: bytes) -> str:
    """Return the document of a prompt file's header, after the checks of its size."""
    if excess := header_excess(data):
        raise PromptFileInvalid(f"The header of the file has {excess}.")
    header = header_of(data) or {}
    try:
        document = str(header["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError):
        raise PromptFileInvalid(f"Not a prompt file: {describe_wrong_file(data)}") from None
    if len(header) - 1 > MAX_TENSORS:
        raise PromptFileInvalid(
            f"The file has {len(header) - 1:,} tensors; at most {MAX_TENSORS:,} are accepted."
        )
    if excess := json_excess(document):  # escapes may have hidden some
        raise PromptFileInvalid(f"The header of the file has {excess}.")
    return document


def _read_header(data: bytes) -> _Header:
    document = _header_document(data)
    try:
        fields = json.loads(document)
        if excess := depth_excess(fields):
            raise PromptFileInvalid(f"The header of the file has {excess}.")
        # Values that cannot be serialized again (NaN, infinity, lone surrogates) are refused: they
        # would break every reply that contains them.
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        version = fields.get("format_version")
        if version not in range(PLAIN_VERSION, FORMAT_VERSION + 1) or isinstance(version, bool):
            raise PromptFileInvalid(
                f"The file has format version {version!r}; this prompt-serve reads "
                f"{PLAIN_VERSION} to {FORMAT_VERSION}. Update prompt-serve, or train the "
                f"prompt again."
            )
        _check_fields_of_version(fields, version)
        return _Header.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:10]
        )
        raise PromptFileInvalid(f"The header is not valid: {faults}.") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise PromptFileInvalid(f"The header is not valid JSON: {error}.") from error


def _check_fields_of_version(fields: Mapping[str, Any], version: int) -> None:
    """Raise PromptFileInvalid unless the later fields are exactly those of ``version``."""
    later = set(_fields_after(version))
    missing = set(_fields_after(PLAIN_VERSION)) - later - set(fields)
    if missing or later & set(fields):
        what = "needs" if missing else "does not have"
        named = ", ".join(sorted(missing or later & set(fields)))
        raise PromptFileInvalid(
            f"The header is not valid: format version {version} {what} the fields {named}."
        )


def _check_numbers(header: _Header) -> None:
    """Raise PromptFileInvalid if the quantized tensors would have far more numbers than bytes."""
    branches = (getattr(header, branch) for branch in _BRANCHES)
    shapes = [
        quantized.shape
        for branch in branches
        if branch is not None
        for quantized in (branch.coded or {}).values()
    ]
    # Without the sides of length 0, with which any other length would be within the limit.
    numbers = sum(math.prod(map(abs, filter(None, shape))) for shape in shapes)
    if numbers > MAX_NUMBERS:
        raise PromptFileInvalid(
            f"The quantized tensors are too large: {shapes[:5]} have more than {MAX_NUMBERS:,} "
            f"numbers."
        )


def _read_branch(
    branch: str, header: _BranchHeader | None, arrays: Mapping[str, Any]
) -> Encoding | ClassVectors | LabelVectors | ImageSketch | None:
    named = {
        key.removeprefix(f"{branch}."): array
        for key, array in arrays.items()
        if key.startswith(f"{branch}.")
    }
    if header is None:
        if named:
            raise PromptFileInvalid(f"The file contains unexpected tensors: {sorted(named)}.")
        return None
    tensors: dict[str, Any] = dict(named)
    for name, quantized in (header.coded or {}).items():
        try:
            packed, codebook = tensors.pop(f"{name}.indices"), tensors.pop(f"{name}.codebook")
        except KeyError as error:
            raise PromptFileInvalid(f"Quantized tensor {name!r} lacks {error}.") from error
        if name in tensors:
            raise PromptFileInvalid(
                f"Tensor {name!r} is in the file twice, as float16 and quantized."
            )
        tensors[name] = _read_quantized(quantized, packed, codebook)
    read = image_encoding_from if branch in ("classes", "sketch") else encoding_from
    return read(header.encoding, tensors, header.options)


def _read_quantized(
    header: _QuantizedHeader, packed: NDArray[Any], codebook: NDArray[Any]
) -> QuantizedTensor:
    fits = header.bits in BITS and codebook.size == 2**header.bits
    if not fits or any(side < 0 for side in header.shape) or len(header.shape) > 3:
        raise PromptFileInvalid(
            f"A tensor of shape {header.shape} at {header.bits} bits with a codebook of "
            f"{codebook.size} numbers contradicts itself."
        )
    indices = unpack(packed, header.bits, tuple(header.shape))
    return QuantizedTensor(indices=indices, codebook=codebook)


def _read_probe(encoded: str) -> HalfArray:
    try:
        raw = base64.b64decode(encoded, validate=True)
        return np.frombuffer(raw, dtype="<f2").astype(np.float16)
    except (binascii.Error, ValueError) as error:
        raise PromptFileInvalid(f"The probe is not base64 of float16 numbers: {error}.") from error
