"""Checkpoints as people have them: loaded without running code, or named for what they are."""

import argparse
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prompt_serve.errors import BackboneUnavailable
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.clip.checkpoint_file import read_checkpoint

Write = Callable[[Any, Path], object]
Weights = dict[str, Tensor]


def prefixed(weights: Weights, prefix: str) -> Weights:
    return OrderedDict((prefix + name, tensor) for name, tensor in weights.items())


class Strange:
    """An object of a package that is not installed where the file is read."""

    def __init__(self, content: object) -> None:
        self.content = content


class Hostile:
    """A pickle that would run a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def traced(clip: torch.nn.Module) -> torch.jit.ScriptModule:
    """A TorchScript archive such as OpenAI's: its own attributes beside the weights."""
    holder = Holder()
    for name, tensor in clip.state_dict().items():
        *parents, last = name.split(".")
        module: torch.nn.Module = holder
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Holder())
            module = getattr(module, parent)
        module.register_buffer(last, tensor)
    holder.register_buffer("input_resolution", torch.tensor(32))
    script: torch.jit.ScriptModule = torch.jit.trace(holder, torch.zeros(1))  # type: ignore[no-untyped-call]
    return script


class Holder(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


LOADED: dict[str, Write] = {
    "state dict": lambda clip, path: torch.save(clip.state_dict(), path),
    "state dict, format of old": lambda clip, path: torch.save(
        clip.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "state_dict wrapper": lambda clip, path: torch.save({"state_dict": clip.state_dict()}, path),
    "model wrapper": lambda clip, path: torch.save({"model": clip.state_dict(), "step": 7}, path),
    "two wrappers": lambda clip, path: torch.save(
        {"model": {"state_dict": clip.state_dict()}, "epoch": 3}, path
    ),
    "module. prefix": lambda clip, path: torch.save(prefixed(clip.state_dict(), "module."), path),
    "compiled and parallel": lambda clip, path: torch.save(
        {"state_dict": prefixed(clip.state_dict(), "_orig_mod.module.")}, path
    ),
    "lightning": lambda clip, path: torch.save(
        {"state_dict": {**prefixed(clip.state_dict(), "model."), "loss.weight": torch.ones(2)}},
        path,
    ),
    "pickled arguments": lambda clip, path: torch.save(
        {"state_dict": clip.state_dict(), "args": argparse.Namespace(lr=1)}, path
    ),
    "pickled objects": lambda clip, path: torch.save(
        {"model": clip.state_dict(), "config": Strange({"deep": [Strange(1)]}), "p": Path("x")},
        path,
    ),
    "whole pickled model": lambda clip, path: torch.save(clip, path),
    "whole model in a wrapper": lambda clip, path: torch.save({"model": clip}, path),
    "TorchScript": lambda clip, path: torch.jit.save(traced(clip), path),
    "safetensors": lambda clip, path: save_file(
        {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
@pytest.mark.parametrize("kind", LOADED)
def test_it_is_loaded(kind: str, suffix: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    LOADED[kind](tiny_backbone.clip, path)

    found = read_checkpoint(path)

    expected = tiny_backbone.clip.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("whole", [False, True], ids=["state dict", "with objects"])
def test_precisions_are_read(
    dtype: torch.dtype, whole: bool, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in tiny_backbone.clip.state_dict().items()}
    torch.save({"model": weights, **({"x": Strange(1)} if whole else {})}, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_slices_and_transposes_are_read_as_they_are(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    weights = dict(tiny_backbone.clip.state_dict())
    weights["text_projection"] = torch.arange(72.0).reshape(6, 12).T[2:7, 1:]
    torch.save({"model": weights, "x": Strange(1)}, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt")["text_projection"]
    assert torch.equal(found, weights["text_projection"])


@pytest.mark.parametrize("place", ["beside", "in a list", "in a wrapper"])
def test_no_code_of_a_file_runs(place: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    weights, hostile = tiny_backbone.clip.state_dict(), Hostile(tmp_path / "ran")
    content: dict[str, Any] = {"state_dict": weights}
    content["extra"] = [hostile] if place == "in a list" else hostile
    if place == "in a wrapper":
        content = {"model": content}
    torch.save(content, tmp_path / "w.pt")

    found = read_checkpoint(tmp_path / "w.pt")

    assert found.keys() == weights.keys()
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have run


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"), io.BytesIO())


def _cut(write: Write, clip: Any, path: Path, share: float) -> None:
    write(clip, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


_ZIP, _SAFE, _OLD = LOADED["state dict"], LOADED["safetensors"], LOADED["state dict, format of old"]
REFUSED: dict[str, tuple[Write, str]] = {
    "empty": (lambda clip, path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "LFS pointer": (
        lambda clip, path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "is a Git LFS pointer.*git lfs pull",
    ),
    "HTML": (lambda clip, path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page"),
    "HTML in capitals": (lambda clip, path: path.write_text("<HTML><BODY>"), "is a web page"),
    "XML": (lambda clip, path: path.write_text("<?xml version='1.0'?>"), "is a web page"),
    "JSON": (lambda clip, path: path.write_text('{"error": "denied"}'), "is a JSON document"),
    "text": (lambda clip, path: path.write_text("Not found"), "is no checkpoint"),
    "gzip": (lambda clip, path: path.write_bytes(gzip.compress(b"x")), "is a gzip archive"),
    "tar": (lambda clip, path: _tar(path), "is a tar archive. Unpack"),
    "zip": (lambda clip, path: _zip(path), "is a zip archive without a checkpoint"),
    "HDF5": (lambda clip, path: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 9), "is an HDF5 file"),
    "cut zip": (lambda clip, path: _cut(_ZIP, clip, path, 0.6), "is damaged or cut short"),
    "cut late": (lambda clip, path: _cut(_ZIP, clip, path, 0.999), "is damaged or cut short"),
    "cut safetensors": (lambda clip, path: _cut(_SAFE, clip, path, 0.6), "damaged or cut short"),
    "cut header": (lambda clip, path: _cut(_SAFE, clip, path, 0.0001), "damaged or cut short"),
    "cut old file": (lambda clip, path: _cut(_OLD, clip, path, 0.5), "damaged or cut short"),
    "old file with objects": (
        lambda clip, path: torch.save(
            {"state_dict": clip.state_dict(), "args": Strange(1)},
            path,
            _use_new_zipfile_serialization=False,
        ),
        "could run code, so it is not loaded. If you trust it",
    ),
    "plain pickle": (lambda clip, path: path.write_bytes(pickle.dumps({"a": Strange(1)})), "."),
    "a list": (lambda clip, path: torch.save([torch.ones(2)], path), "holds no weights: it is a"),
    "an optimizer": (
        lambda clip, path: torch.save({"optimizer": {"lr": 1}}, path),
        "holds no weights: it is a dictionary with optimizer",
    ),
    "image tower alone": (
        lambda clip, path: torch.save(clip.visual.state_dict(), path),
        "holds no weights of a CLIP. It has [0-9]+ tensors, such as",
    ),
    "custom text": (
        lambda clip, path: torch.save(
            {n if n.startswith("visual") else f"text.{n}": t for n, t in clip.state_dict().items()},
            path,
        ),
        "text tower of its own kind",
    ),
    "transformers' names": (
        lambda clip, path: torch.save({"text_model.final_layer_norm.bias": torch.ones(2)}, path),
        "names of transformers: give the folder",
    ),
    "two models": (
        lambda clip, path: torch.save(
            {**prefixed(clip.state_dict(), "student."), **prefixed(clip.state_dict(), "ema.")}, path
        ),
        "holds 2 models: student., ema.",
    ),
    "a folder": (lambda clip, path: path.mkdir(), "There is no checkpoint file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_says_what_else_it_is(kind: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write, expected = REFUSED[kind]
    write(tiny_backbone.clip, path)

    with pytest.raises(BackboneUnavailable, match=expected) as caught:
        read_checkpoint(path)

    message = str(caught.value)
    assert message.count("\n") == 0
    assert str(path) in message
