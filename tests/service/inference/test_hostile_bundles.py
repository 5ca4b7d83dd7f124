"""Bundles whose files are damaged, or those of another backbone, are refused in one line."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.bundle import (
    IMAGE_ENCODER,
    MANIFEST,
    TEXT_ENCODER,
    TOKENIZER,
    open_bundle,
    shipped_bundle,
)
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.errors import BundleInvalid
from prompt_serve.service.inference.graph_check import check_graphs

WEIGHTS = "model.safetensors"
Manifest = dict[str, Any]
Change = Callable[[Path, Manifest], None]


def sized(**sizes: Any) -> Change:
    return lambda folder, manifest: manifest["backbone"].update(sizes)


def said(**fields: Any) -> Change:
    return lambda folder, manifest: manifest.update(fields)


def shown(**fields: Any) -> Change:
    return lambda folder, manifest: manifest["preprocessing"].update(fields)


def written(name: str, change: Callable[[bytes], bytes], *, listed: bool = True) -> Change:
    """Replace a file; ``listed`` with its digest in the manifest."""

    def apply(folder: Path, manifest: Manifest) -> None:
        data = change((folder / name).read_bytes())
        (folder / name).unlink()  # it is a link to the shipped one
        (folder / name).write_bytes(data)
        if listed:
            digest = hashlib.sha256(data).hexdigest()
            manifest["files"][name] = {"sha256": digest, "size_bytes": len(data)}

    return apply


def linked(name: str, target: str) -> Change:
    def apply(folder: Path, manifest: Manifest) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return apply


def exchanged(folder: Path, manifest: Manifest) -> None:
    written(IMAGE_ENCODER, lambda data: (folder / TEXT_ENCODER).read_bytes())(folder, manifest)


FIT = "do not fit its manifest"
READ = "is not a manifest this version reads"
ACCEPTED = "are accepted"
CHANGES: dict[str, tuple[Change, str]] = {
    "features of another width": (sized(embed_dim=255), FIT),
    "tokens of another width": (sized(text_width=191), "has token embeddings"),
    "a context without end": (sized(context_length=10**6), ACCEPTED),
    "a longer context": (sized(context_length=90), FIT),
    "another number of blocks": (said(text_layers=5), FIT),
    "blocks without end": (said(text_layers=10**9), READ),
    "a number beyond 64 bits": (said(text_layers=10**30), READ),
    "another image size": (shown(image_size=225), FIT),
    "images without end": (shown(image_size=10**6), ACCEPTED),
    "images of nothing": (shown(image_size=0), ACCEPTED),
    "a negative scale": (said(logit_scale=-1.0), READ),
    "an infinite scale": (said(logit_scale=1e400), READ),
    "a tokenizer that is none": (written(TOKENIZER, lambda data: b"{}"), "cannot be read"),
    "a tokenizer of bytes": (written(TOKENIZER, lambda data: b"\xff" * 99), "cannot be read"),
    "a graph that is none": (written(IMAGE_ENCODER, lambda data: b"x" * 99), "cannot be loaded"),
    "an empty graph": (written(TEXT_ENCODER, lambda data: b""), "cannot be loaded"),
    "half a graph": (written(TEXT_ENCODER, lambda data: data[:2000]), "cannot be loaded|" + FIT),
    "graphs exchanged": (exchanged, FIT),
    "weights cut off": (written(WEIGHTS, lambda data: data[:-999]), "cannot be (read|loaded)"),
    "weights cut off, not listed": (
        written(WEIGHTS, lambda data: data[:-9], listed=False),
        "is not the file that the manifest describes",
    ),
    "another digest": (
        written(WEIGHTS, lambda data: b"\0" + data[1:], listed=False),
        "is not the file that the manifest describes",
    ),
    "a link to nothing": (linked(TOKENIZER, "/none"), "lacks"),
    "a link to a device": (linked(TOKENIZER, "/dev/zero"), "lacks"),
    "a link to another file": (linked(TOKENIZER, "/etc/hostname"), "is not the file"),
    "no files": (said(files={}), "does not list"),
    "a file elsewhere": (said(files={"../x": {"sha256": "0", "size_bytes": 0}}), READ),
    "an absolute file": (said(files={"/etc/passwd": {"sha256": "0", "size_bytes": 0}}), READ),
    "weights elsewhere": (said(weights="../x.safetensors"), READ),
    "weights not listed": (said(weights="x.safetensors"), "does not list"),
    "a text side elsewhere": (said(text_from="../x"), READ),
    "itself as its text side": (said(text_from="copy"), "text side of another bundle"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shipped = shipped_bundle("embedded")
    return Path(shutil.copytree(shipped, tmp_path / "copy", copy_function=_link_or_copy))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_bundle_that_does_not_fit_itself_is_refused_in_one_line(copy: Path, kind: str) -> None:
    change, reason = CHANGES[kind]
    manifest = json.loads((copy / MANIFEST).read_text())
    change(copy, manifest)
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).write_text(json.dumps(manifest))

    with pytest.raises(BundleInvalid, match=reason) as caught:
        check_graphs(open_bundle(copy))

    message = str(caught.value)
    assert "\n" not in message
    assert str(copy) in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["embedded", "embedded-vit"])
def test_the_shipped_bundles_fit(name: str) -> None:
    check_graphs(open_bundle(shipped_bundle(name)))


def graph(location: str, domain: str = "") -> bytes:
    """A graph that adds four numbers of an external file, or calls an operator of a domain."""
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    tensor = onnx.TensorProto(name="w", data_type=float32, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    inputs = [helper.make_tensor_value_info("x", float32, [4])]
    outputs = [helper.make_tensor_value_info("y", float32, [4])]
    made = helper.make_graph([node], "g", inputs, outputs, [tensor])
    versions = [helper.make_opsetid("", 17), helper.make_opsetid(domain or "a", 1)]
    data: bytes = helper.make_model(made, opset_imports=versions, ir_version=8).SerializeToString()
    return data


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "{above}/secret.bin", "/etc/passwd", "../../../../../../../etc/passwd",
     "link.bin", "none.bin", "*/_ORT_MEM_ADDR_/*"],
)  # fmt: skip
def test_a_graph_with_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"A" * 64)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "graph.onnx").write_bytes(graph(location.format(above=tmp_path)))

    with pytest.raises(BundleInvalid, match=r"graph\.onnx cannot be loaded") as caught:
        open_session(folder / "graph.onnx", CPU, threads=1)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("domain", ["custom", "com.example", "ai.onnx.contrib", "test", "x.y.z"])
def test_a_graph_with_operators_of_others_is_refused(tmp_path: Path, domain: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (tmp_path / "graph.onnx").write_bytes(graph("w.bin", domain))

    with pytest.raises(BundleInvalid, match=r"graph\.onnx cannot be loaded"):
        open_session(tmp_path / "graph.onnx", CPU, threads=1)
