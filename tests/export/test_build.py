from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from prompt_serve.bundle import MANIFEST, TOKEN_EMBEDDING, open_bundle
from prompt_serve.errors import BundleInvalid, ExportParityFailed
from prompt_serve.export import parity
from prompt_serve.export.build import export_bundle
from prompt_serve.training.clip.backbone import Backbone
from tests.ready_graphs import ready_graphs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def graphs(tiny_bundle: Path) -> Iterator[dict[str, onnx.ModelProto]]:
    with ready_graphs(tiny_bundle) as graphs:
        yield graphs


def test_the_manifest_says_what_the_bundle_is(tiny_bundle: Path, tiny_backbone: Backbone) -> None:
    manifest = open_bundle(tiny_bundle).manifest

    assert manifest.backbone == tiny_backbone.ref
    assert manifest.preprocessing == tiny_backbone.preprocessing
    assert manifest.precision == "fp32"
    assert manifest.causal_text
    assert manifest.logit_scale == pytest.approx(1 / 0.07)
    assert max(manifest.parity.values()) <= 1e-5
    assert set(manifest.files) == {p.name for p in tiny_bundle.iterdir()} - {MANIFEST}


def test_token_embeddings_are_the_backbones(tiny_bundle: Path, tiny_backbone: Backbone) -> None:
    embedding = np.load(tiny_bundle / TOKEN_EMBEDDING)

    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, tiny_backbone.token_embedding.numpy())


@pytest.mark.usefixtures("graphs")
def test_an_old_bundle_is_replaced_whole(tiny_backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_bundle(tiny_backbone, out)
    (out / "left_over.txt").write_text("of an earlier version")

    said: list[str] = []
    export_bundle(tiny_backbone, out, report=said.append)

    assert open_bundle(out)
    assert not (out / "left_over.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert any("parity: text_names" in line for line in said)


def test_a_graph_with_wrong_weights_is_not_written(
    tiny_backbone: Backbone, tmp_path: Path, graphs: dict[str, onnx.ModelProto]
) -> None:
    out = tmp_path / "bundle"
    export_bundle(tiny_backbone, out)
    before = contents(tmp_path)
    weights = next(t for t in graphs["image"].graph.initializer if len(t.dims) == 4)
    values = np.frombuffer(weights.raw_data, dtype=np.float32).copy()
    values[:100] += 0.01
    weights.raw_data = values.tobytes()

    with pytest.raises(ExportParityFailed, match=r"nothing was written: image_random is") as caught:
        export_bundle(tiny_backbone, out)

    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1
    differences = caught.value.facts["differences"]
    assert isinstance(differences, dict)
    assert differences["image_random"] > 1e-5 >= differences["text_names"]


@pytest.mark.usefixtures("graphs")
def test_a_first_export_that_fails_leaves_nothing(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "FP32_LIMIT", -1.0)

    with pytest.raises(ExportParityFailed, match="text_names"):
        export_bundle(tiny_backbone, tmp_path / "bundle")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(tiny_backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")

    with pytest.raises(BundleInvalid, match="is not a bundle, so it is left alone"):
        export_bundle(tiny_backbone, tmp_path)
    with pytest.raises(BundleInvalid, match="is not a bundle"):
        export_bundle(tiny_backbone, tmp_path / "thesis.tex")

    assert (tmp_path / "thesis.tex").read_text() == "the only copy"


def test_a_place_that_cannot_be_written_is_named(tiny_backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BundleInvalid, match=r"cannot be written to .*bundle"):
        export_bundle(tiny_backbone, tmp_path / "file" / "bundle")


@pytest.mark.usefixtures("graphs")
def test_an_empty_folder_and_missing_parents_will_do(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()

    export_bundle(tiny_backbone, tmp_path / "empty")
    export_bundle(tiny_backbone, tmp_path / "a" / "b" / "bundle")

    assert open_bundle(tmp_path / "empty")
    assert open_bundle(tmp_path / "a" / "b" / "bundle")
