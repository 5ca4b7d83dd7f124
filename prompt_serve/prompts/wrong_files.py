"""Recognize what people upload in place of a prompt file, and say what to do with it."""

import json

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


def _tensor_names(data: bytes) -> list[str] | None:
    """Return the names in a safetensors header; None if it has none."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size]) if size <= len(data) - 8 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    return [name for name in header if name != "__metadata__"]


def _safetensors(names: list[str]) -> str:
    if any(part in name for name in names for part in _CLIP_TENSORS):
        return f"a CLIP checkpoint, {_BACKBONE}"
    shown = ", ".join(repr(name[:60]) for name in names[:3]) or "none"
    return (
        f"a safetensors file without the metadata of a prompt (tensors: {shown}). Train a prompt: "
        f"prompt-serve train FOLDER"
    )
