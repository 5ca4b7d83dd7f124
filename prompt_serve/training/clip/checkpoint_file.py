"""Read the weights in a checkpoint file, whatever wrote it, or say what the file is instead."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prompt_serve.errors import BackboneUnavailable, counted
from prompt_serve.training.clip.inert_pickle import read_inert

StateDict = dict[str, Tensor]

# Names that training scripts store the weights under.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "clip")
# Numbers that OpenAI stores beside its weights, and the mask, which is no weight.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_ANCHOR = "token_embedding.weight"  # every CLIP has one
# First bytes of files that are mistaken for checkpoints, what they are, and the way out.
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (b"{", "a JSON document", "Give the folder that it is in, or the file with the weights."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"\x89HDF", "an HDF5 file", "Take the PyTorch or safetensors weights of the model."),
    (b"GGUF", "a GGUF file", "Take the PyTorch or safetensors weights of the model."),
    (b"\x93NUMPY", "a NumPy array", "Take the PyTorch or safetensors weights of the model."),
)
_HTML = (b"<!doctype", b"<html", b"<?xml", b"<head")
_TAR_MAGIC = slice(257, 262)
_HEAD_BYTES = 512


def read_checkpoint(path: Path) -> StateDict:
    """Return the weights of the CLIP in a checkpoint file, by open_clip's names.

    Raises:
        BackboneUnavailable: as ``read_tensors``, or the file has no weights of a CLIP.
    """
    return _of_clip(path, read_tensors(path))


def read_tensors(path: Path) -> StateDict:
    """Return the tensors in a checkpoint file by name.

    Takes safetensors files, state dicts of ``torch.save`` in any wrapper, whole pickled models and
    TorchScript archives. Nothing that a file names is run (``weights_only``, ``inert_pickle``).

    Raises:
        BackboneUnavailable: the file is something else, damaged, or has no tensors.
    """
    if not path.is_file():
        raise BackboneUnavailable(f"There is no checkpoint file {path}.")
    try:
        head = _head(path)
        content = _content(path, head)
    except OSError as error:
        raise BackboneUnavailable(f"{path} cannot be read: {error}") from error
    found = _state_dict(content)
    if not found:
        raise BackboneUnavailable(f"{path} holds no weights: {_described(content)}.")
    return found


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise BackboneUnavailable(f"{path} is empty (0 bytes). Download or copy it again.")
    return head


def _content(path: Path, head: bytes) -> Any:
    size = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and size < 1 << 32:
        return _safetensors(path)
    if head.lstrip().lower().startswith(_HTML):
        raise _refused(path, "a web page", "Download the file itself; a login may be needed.")
    for start, kind, remedy in _OTHER_FILES:
        if head.startswith(start):
            raise _refused(path, kind, remedy)
    if head[_TAR_MAGIC] == b"ustar":
        raise _refused(path, "a tar archive", "Unpack it first.")
    if head.startswith(b"PK"):
        return _zip(path)
    if head.startswith(b"\x80"):
        return _old_pickle(path)
    raise _refused(
        path, "no checkpoint", "Expected a .safetensors file, or a .pt or .bin file of PyTorch."
    )


def _safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, f"safetensors: {error}") from error


def _zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _damaged(path, str(error)) from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise _refused(path, "a zip archive without a checkpoint of PyTorch", "Unpack it first.")
    if not any(name.endswith("/constants.pkl") for name in names):  # not TorchScript
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            pass  # it names other objects than tensors, or it is damaged
    try:
        return read_inert(path)
    # A damaged pickle can fail in any of its instructions.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _old_pickle(path: Path) -> Any:
    """Read a file of PyTorch before 1.6."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other versions of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneUnavailable(
            f"{path} is a pickle in the format of PyTorch before 1.6 that holds other objects than "
            f"tensors, which could run code, so it is not loaded. If you trust it, write its "
            f"weights alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], OUT)"
        ) from error
    except (EOFError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _state_dict(content: Any) -> StateDict:
    """Return the tensors of a state dict, which may be wrapped; empty if there are none."""
    if not isinstance(content, Mapping):
        return {}
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping) and (found := _state_dict(content[name])):
            return found
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _of_clip(path: Path, found: StateDict) -> StateDict:
    """Return the weights of the CLIP in a state dict, without prefixes such as ``module.``.

    Raises:
        BackboneUnavailable: there is none, or several.
    """
    starts = [name.removesuffix(_ANCHOR) for name in found if name.endswith(_ANCHOR)]
    starts = [s for s in starts if any(name.startswith(f"{s}visual.") for name in found)]
    if len(starts) > 1:
        raise BackboneUnavailable(
            f"{path} holds {len(starts)} models: {', '.join(s or '(no prefix)' for s in starts)}. "
            f"Save the state dict of one of them."
        )
    if not starts:
        raise BackboneUnavailable(f"{path} holds no weights of a CLIP. {_foreign(found)}")
    weights = {n.removeprefix(starts[0]): v for n, v in found.items() if n.startswith(starts[0])}
    return {name: value for name, value in weights.items() if name not in _NO_WEIGHTS}


def _foreign(found: StateDict) -> str:
    if any("text_model." in name for name in found):
        return (
            "Its weights have the names of transformers: give the folder that it is in, with its "
            "config.json."
        )
    if any("text.transformer." in name or "text.token_embedding" in name for name in found):
        return "It has a text tower of its own kind (text.*), which is not supported."
    some = ", ".join(sorted(found)[:3])
    return (
        f"It has {counted(len(found), 'tensor')}, such as {some}; expected open_clip's or OpenAI's "
        f"names."
    )


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"it is a dictionary with {', '.join(map(str, list(content)[:5])) or 'no entries'}"
    return f"it is a {type(content).__name__}"


def _refused(path: Path, kind: str, remedy: str) -> BackboneUnavailable:
    return BackboneUnavailable(f"{path} is {kind}. {remedy}")


def _damaged(path: Path, reason: str) -> BackboneUnavailable:
    reason = " ".join(reason.split())
    return BackboneUnavailable(
        f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short. Download or copy it "
        f"again. ({reason})"
    )
