"""Files of other kinds in place of a prompt file: each is told by its name."""

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.prompt_file import from_bytes

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


def _zip(*paths: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            archive.writestr(path, b"content")
    return file.getvalue()


def _onnx(**facts: str) -> bytes:
    one = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [one], [one])
    model: onnx.ModelProto = helper.make_model(graph, **facts)
    return bytes(model.SerializeToString())


def _tensors(names: str, metadata: Mapping[str, str] | None = None) -> bytes:
    arrays = {name: np.zeros(2, np.float32) for name in names.split()}
    return save(arrays, dict(metadata) if metadata else None)


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "it is empty"),
    "LFS pointer": (lambda: LFS, "Git LFS pointer.*git lfs pull"),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "HTML.*Download it again"),
    "HTML after spaces": (lambda: b"\n\n  <html><head>", "HTML.*Download it again"),
    "HTML after a BOM": (lambda: b"\xef\xbb\xbf<HTML>", "HTML.*Download it again"),
    "XML": (lambda: b"<?xml version='1.0'?><Error/>", "HTML or XML"),
    "OpenAI's tensors": (
        lambda: _tensors("visual.conv1.weight token_embedding.weight", {"format": "pt"}),
        "CLIP checkpoint.*prompt-serve export",
    ),
    "transformers' tensors": (
        lambda: _tensors("text_model.embeddings.position_ids vision_model.embeddings.weight"),
        "CLIP checkpoint.*prompt-serve export",
    ),
    "open_clip's tensors": (
        lambda: _tensors("text.transformer.resblocks.0.ln_1.weight logit_scale"),
        "CLIP checkpoint.*prompt-serve export",
    ),
    "a wrapped checkpoint": (
        lambda: _tensors("module.visual.proj module.logit_scale"),
        "CLIP checkpoint.*prompt-serve export",
    ),
    "other tensors": (
        lambda: _tensors("lora_A lora_B"),
        r"without the metadata of a prompt \(tensors: 'lora_A', 'lora_B'\)",
    ),
    "torch.save": (lambda: _zip("archive/data.pkl", "archive/data/0"), "PyTorch checkpoint"),
    "an old torch.save": (lambda: pickle.dumps({"state_dict": {}}), "pickle.*PyTorch checkpoint"),
    "pickle protocol 2": (lambda: pickle.dumps([1], protocol=2), "pickle.*PyTorch checkpoint"),
    "zip": (lambda: _zip("pets.safetensors"), "a zip.*PUT /v1/tasks"),
    "empty zip": (lambda: _zip(), "a zip"),
    "ONNX": (lambda: _onnx(), "ONNX graph.*prompt-serve export"),
    "ONNX of PyTorch": (lambda: _onnx(producer_name="pytorch"), "ONNX graph"),
    "PNG": (lambda: _picture("PNG"), "an image.*prompt-serve classify"),
    "JPEG": (lambda: _picture("JPEG"), "an image.*prompt-serve classify"),
    "WebP": (lambda: _picture("WEBP"), "an image.*prompt-serve classify"),
    "npy": (_npy, "numpy array"),
    "gzip": (lambda: gzip.compress(b"x"), "gzip.*Unpack"),
    "JSON": (lambda: b'{"name": "pets", "class_names": ["cat"]}', "JSON.*POST /v1/tasks"),
    "form": (
        lambda: b'--abc\r\nContent-Disposition: form-data; name="file"\r\n\r\nx',
        "multipart form.*curl -T",
    ),
    "text": (lambda: b"pets: cat, dog, horse", "not a safetensors file, or are truncated"),
    "few bytes": (lambda: b"abc", "not a safetensors file, or are truncated"),
    "half a header": (lambda: _tensors("text_model.x")[:20], "or are truncated"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_wrong_file_is_told_by_its_name(kind: str) -> None:
    make, message = FILES[kind]

    with pytest.raises(PromptFileInvalid, match=rf"^Not a prompt file: .*{message}"):
        from_bytes(make())
