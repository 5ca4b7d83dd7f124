"""The shipped backbones are ready to run: graphs whose weights are in model.safetensors."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pretraining.graphs import MOST_INSIDE, WEIGHTS, make_bundle
from prompt_serve.bundle import SHIPPED, open_bundle, shipped_bundle
from prompt_serve.errors import BundleInvalid
from prompt_serve.export.parity import check_parity, open_session
from prompt_serve.export.stored_weights import (
    StoredTensor,
    read_stored,
    size_inside,
    with_stored_weights,
)
from prompt_serve.training.clip.backbone import load_backbone
from tests.no_torch import run_without_torch

GRAPHS = [
    shipped_bundle("embedded") / "image_encoder.onnx",
    shipped_bundle("embedded") / "text_encoder.onnx",
    shipped_bundle("embedded-vit") / "image_encoder.onnx",
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bundles_compute_what_pytorch_computes(name: str) -> None:
    bundle, backbone = open_bundle(shipped_bundle(name)), load_backbone(name)

    check_parity(backbone, bundle.image_encoder, bundle.text_encoder, report=print)  # raises

    assert bundle.manifest.backbone == backbone.ref
    assert bundle.manifest.preprocessing == backbone.preprocessing
    assert bundle.manifest.logit_scale == backbone.logit_scale
    assert bundle.tokenizer.encode("a red-winged blackbird") == backbone.tokenizer.encode(
        "a red-winged blackbird"
    )
    np.testing.assert_array_equal(bundle.token_embedding, backbone.token_embedding.numpy())


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_weights_are_whole_tensors_of_the_safetensors_file_or_thirds(graph: Path) -> None:
    data = (graph.parent / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    stored = {
        start + entry["data_offsets"][0]: entry
        for name, entry in header.items()
        if name != "__metadata__"
    }
    model = onnx.load(graph, load_external_data=False)

    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    for tensor in outside:
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        owner = max(first for first in stored if first <= offset)
        entry = stored[owner]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        assert place["location"] == WEIGHTS
        assert entry["dtype"] == "F16"
        assert tensor.data_type == TensorProto.FLOAT16
        assert length == 2 * np.prod(tensor.dims)
        assert size in (length, 3 * length)
        assert (offset - owner) % length == 0
        assert offset + length <= owner + size
    assert sum(2 * np.prod(t.dims) for t in outside) > 20 * size_inside(model)
    assert size_inside(model) <= MOST_INSIDE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n == "embedded" else ()) for n in SHIPPED]
)
def test_made_anew_the_graphs_have_the_same_bytes(name: str, tmp_path: Path) -> None:
    shipped = shipped_bundle(name)
    shutil.copy(shipped / WEIGHTS, tmp_path)

    make_bundle(name, tmp_path)

    old, new = (onnx.load(p / "image_encoder.onnx", load_external_data=False).producer_version
                for p in (shipped, tmp_path))  # fmt: skip
    if old != new:
        pytest.skip(f"the shipped graphs were exported by torch {old}, this is torch {new}")
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (shipped / path.name).read_bytes(), path.name


_START = """
import sys
from pathlib import Path
import numpy as np
from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.service.core import Core
from prompt_serve.service.settings import Settings

home = Path(sys.argv[1])
core = Core(Settings(home=home, bundle=sys.argv[2]))
side = core.image_size
features = core.engine.encode_images(np.full((2, side, side, 3), 128, dtype=np.uint8))
folders = [path.name for path in home.iterdir() if path.is_dir()]
print(core.bundle.manifest.backbone.id, features.shape, folders)
core.close()
try:
    import torch
except ModuleNotFoundError:
    print("no torch")
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_service_starts_without_torch_and_exports_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()

    done = run_without_torch(tmp_path / "site", "-c", _START, str(tmp_path / "home"), name)

    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{name} (2, 256) []", "no torch"]


def test_a_bundle_without_the_folder_of_its_text_side_is_refused(tmp_path: Path) -> None:
    shutil.copytree(shipped_bundle("embedded-vit"), tmp_path / "embedded-vit")

    with pytest.raises(BundleInvalid, match=r"There is no bundle in .*/embedded \("):
        open_bundle(tmp_path / "embedded-vit")

    shutil.copytree(shipped_bundle("embedded"), tmp_path / "embedded")
    assert open_bundle(tmp_path / "embedded-vit").text_encoder.is_file()


def test_weights_that_changed_are_noticed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_bundle("embedded"), tmp_path / "embedded"))
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)

    with pytest.raises(BundleInvalid, match=r"model\.safetensors is not the file"):
        open_bundle(folder)


def test_a_weight_is_referred_to_plainly_transposed_in_thirds_or_scaled(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    half = {
        "conv": rng.standard_normal((8, 4, 3, 3)).astype(np.float16),
        "in_proj": rng.standard_normal((36, 16)).astype(np.float16),
    }
    half["conv"][3] = 0  # a channel that does nothing
    data = b"".join(tensor.tobytes() for tensor in half.values())
    (tmp_path / "weights.bin").write_bytes(b"header.." + data)
    stored = {
        "conv": StoredTensor(values=half["conv"], offset=8),
        "in_proj": StoredTensor(values=half["in_proj"], offset=8 + half["conv"].nbytes),
    }
    wide = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    scale = rng.uniform(0.5, 2, size=(8, 1, 1, 1)).astype(np.float32)
    weights = {
        "plain": wide["in_proj"],
        "turned": np.ascontiguousarray(wide["in_proj"].T),
        "third": wide["in_proj"][12:24],
        "third_turned": np.ascontiguousarray(wide["in_proj"][24:].T),
        "scaled": wide["conv"] * scale,
        "other": rng.standard_normal((8, 4, 3, 3)).astype(np.float32),
    }
    outputs = [
        helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, value.shape)
        for name, value in weights.items()
    ]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", [name], [f"{name}.out"]) for name in weights],
            "weights",
            [],
            outputs,
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 20)],
    )

    changed = with_stored_weights(model, stored, "weights.bin")
    (tmp_path / "graph.onnx").write_bytes(changed.SerializeToString())
    values = open_session(tmp_path / "graph.onnx").run(None, {})

    for (name, expected), value in zip(weights.items(), values, strict=True):
        # One rounding of a float32 product; all others are exact.
        np.testing.assert_allclose(value, expected, rtol=2e-7 if name == "scaled" else 0)
    inside = {t.name for t in changed.graph.initializer if t.data_location != TensorProto.EXTERNAL}
    assert inside == {"other", "scaled.scale"}


def test_stored_tensors_are_read_at_their_offsets() -> None:
    path = shipped_bundle("embedded-vit") / WEIGHTS
    data = path.read_bytes()

    for tensor in read_stored(path).values():
        assert tensor.values.tobytes() == data[tensor.offset : tensor.offset + tensor.values.nbytes]
