"""Read the tensors of a pickled checkpoint without running anything that it names.

A pickle names the functions that rebuild its objects. Here only the functions that rebuild tensors
are known; every other name, whatever it is, becomes an ``_Inert`` object that keeps the state it is
given. So a whole pickled model, a checkpoint with arguments or an optimizer of some package, and a
TorchScript archive are read as the data they are.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Inert:
    """Stand-in for an object of an unknown class: holds its state, runs none of its code."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._root = archive, root
        self._known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        return self._known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind} of an unknown type")
        data = bytearray(self._archive.read(f"{self._root}data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0)


def read_inert(path: Path) -> Any:
    """Return what a zip archive of ``torch.save`` or TorchScript holds.

    Modules become their state dicts, other objects None.

    Raises:
        pickle.UnpicklingError, and others: the archive is damaged or not of this kind.
    """
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as file:
            return _plain(_Reader(file, archive, name.removesuffix("data.pkl")).load())


def _plain(value: Any) -> Any:
    if isinstance(value, _Inert):
        return _state_dict(value) or None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _state_dict(module: _Inert) -> dict[str, Tensor]:
    """Return the tensors of a module and its parts by name, as ``state_dict`` does."""
    state = module.state if isinstance(module.state, dict) else {}
    skipped = state.get("_non_persistent_buffers_set") or ()
    # A pickled nn.Module keeps its tensors and parts in three dictionaries, TorchScript in one.
    parts = [state.get(k) for k in ("_parameters", "_buffers", "_modules")]
    found: dict[str, Tensor] = {}
    for part in [p for p in parts if isinstance(p, dict)] or [state]:
        for name, value in part.items():
            if isinstance(value, Tensor) and name not in skipped:
                found[str(name)] = value
            elif isinstance(value, _Inert):
                found |= {f"{name}.{key}": item for key, item in _state_dict(value).items()}
    return found


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data
