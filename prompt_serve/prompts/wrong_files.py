"""Read the header of a safetensors file within limits; recognize what people upload in place of a
prompt file, and say what to do with it."""

import json
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
MAX_HEADER_VALUES = 500_000  # a list of class accuracies has many
MAX_HEADER_PARTS = 40_000  # lists and objects; each costs as much as ten numbers
MAX_DEPTH = 32
MAX_TENSORS = 10_000
_QUOTES_PER_TENSOR = 12  # of its name and three members

_HEAD_BYTES = 4096
_BACKBONE = (
    "which holds a backbone, not a task. Export it (prompt-serve export) and serve the bundle "
    "(PROMPT_SERVE_BUNDLE)"
)
# First bytes of a file -> what it is.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer in place of the file. Fetch the file: git lfs pull",
    ),
    (b"\x89PNG", "an image. Classify it: prompt-serve classify FILE --task NAME"),
    (b"\xff\xd8\xff", "an image. Classify it: prompt-serve classify FILE --task NAME"),
    (b"GIF8", "an image. Classify it: prompt-serve classify FILE --task NAME"),
    (b"RIFF", "an image. Classify it: prompt-serve classify FILE --task NAME"),
    (b"\x93NUMPY", "a numpy array. Train a prompt: prompt-serve train FOLDER"),
    (b"\x89HDF", "an HDF5 file, for example of Keras. Train a prompt: prompt-serve train FOLDER"),
    (b"\x1f\x8b", "a gzip file. Unpack it first"),
    (b"7z\xbc\xaf", "a 7z file. Unpack it first"),
    (b"\x80", f"a pickle, for example a PyTorch checkpoint, {_BACKBONE}"),
    (b"--", "a multipart form. Send the file itself as the body: curl -T FILE URL"),
    (
        b"{",
        "JSON. A task without training is made of class names: POST /v1/tasks (prompt-serve "
        "tasks create)",
    ),
    (b"<", "an HTML or XML page, perhaps an error that was saved as a file. Download it again"),
)
# Prefixes of tensor names in checkpoints of CLIP, by OpenAI, open_clip and transformers.
_CLIP_TENSORS = ("visual.", "vision_model.", "text_model.", "transformer.", "token_embedding.")


def describe_wrong_file(data: bytes) -> str:
    """Return what a file that is no prompt file is, as the end of 'Not a prompt file: '."""
    if not data:
        return "it is empty."
    head = data[:_HEAD_BYTES]
    if head.startswith(b"PK"):
        return f"it is {_zip(head)}."
    if _is_onnx(head):
        return f"it is an ONNX graph, {_BACKBONE}."
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, kind in _SIGNATURES:
        if head.startswith(signature) or text.startswith(signature):
            return f"it is {kind}."
    tensors = _tensor_names(data)
    if tensors is not None:
        return f"it is {_safetensors(tensors)}."
    return f"the {len(data):,} bytes are not a safetensors file, or are truncated."


def _zip(head: bytes) -> str:
    if b"data.pkl" in head:
        return f"a PyTorch checkpoint, {_BACKBONE}"
    return (
        "a zip. Many prompt files in one zip are uploaded with PUT /v1/tasks (prompt-serve tasks "
        "upload FILE.zip)"
    )


def _is_onnx(head: bytes) -> bool:
    """Return True for a ModelProto: its version of the format, then its producer or graph."""
    return len(head) > 2 and head[0] == 0x08 and head[1] < 32 and head[2] in (0x12, 0x3A, 0x42)


def header_of(data: bytes) -> dict[str, Any] | None:
    """Return the header of a safetensors file; None if it has none, or one beyond the limits."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8 or header_excess(data) is not None:
        return None
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def header_excess(data: bytes) -> str | None:
    """Return what the header of a safetensors file has too much of; None if it is within the
    limits, which are checked before anything is parsed."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        return None  # it is no such file
    if size > MAX_HEADER_BYTES:
        return f"{size:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted"
    header = data[8 : 8 + size].decode("latin-1")
    # Those of the document that the metadata hold are escaped.
    quotes = header.count('"') - header.count('\\"')
    if quotes > _QUOTES_PER_TENSOR * MAX_TENSORS:
        return f"about {quotes // 2:,} names and strings; {MAX_TENSORS:,} tensors have fewer"
    return json_excess(header)


def json_excess(document: str) -> str | None:
    """Return what a JSON document has too much of, as far as it shows without parsing; or None."""
    values, parts = document.count(","), document.count("[") + document.count("{")
    if values > MAX_HEADER_VALUES:
        return f"about {values:,} values; at most {MAX_HEADER_VALUES:,} are accepted"
    if parts > MAX_HEADER_PARTS:
        return f"about {parts:,} lists and objects; at most {MAX_HEADER_PARTS:,} are accepted"
    return None


def depth_excess(value: object) -> str | None:
    """Return the excess of a parsed document that nests too deep; None if it does not."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)  # type: ignore[attr-defined]  # a list
            if isinstance(child, dict | list)
        ]
        if not level:
            return None
    return f"lists or objects more than {MAX_DEPTH} deep in each other"


def _tensor_names(data: bytes) -> list[str] | None:
    """Return the names in a safetensors header; None if it has none."""
    header = header_of(data)
    return None if header is None else [name for name in header if name != "__metadata__"]


def _safetensors(names: list[str]) -> str:
    if any(part in name for name in names for part in _CLIP_TENSORS):
        return f"a CLIP checkpoint, {_BACKBONE}"
    shown = ", ".join(repr(name[:60]) for name in names[:3]) or "none"
    return (
        f"a safetensors file without the metadata of a prompt (tensors: {shown}). Train a prompt: "
        f"prompt-serve train FOLDER"
    )
