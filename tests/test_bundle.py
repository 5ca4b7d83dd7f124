import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import MANIFEST, open_bundle
from prompt_serve.errors import BundleInvalid


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_a_bundle_is_read(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)

    assert bundle.token_embedding.shape == (
        bundle.tokenizer.end_id + 1,
        bundle.manifest.backbone.text_width,
    )
    assert isinstance(bundle.token_embedding, np.memmap)
    assert bundle.image_encoder.is_file()
    assert bundle.text_encoder.is_file()


def test_a_changed_byte_is_noticed(copy: Path) -> None:
    encoder = copy / "image_encoder.onnx"
    data = bytearray(encoder.read_bytes())
    data[len(data) // 2] ^= 1
    encoder.write_bytes(data)

    with pytest.raises(BundleInvalid, match=r"image_encoder\.onnx is not the file"):
        open_bundle(copy)

    assert open_bundle(copy, verify=False)  # sizes agree, digests were not asked for


def test_a_file_cut_short_is_noticed_without_reading_it(copy: Path) -> None:
    encoder = copy / "text_encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1])

    with pytest.raises(BundleInvalid, match=r"text_encoder\.onnx is not the file"):
        open_bundle(copy, verify=False)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()

    with pytest.raises(BundleInvalid, match=r"lacks .*tokenizer\.json. Export the backbone again"):
        open_bundle(copy)


def test_an_empty_folder_says_how_to_make_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="prompt-serve export BACKBONE -o"):
        open_bundle(tmp_path)


def test_another_format_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))

    with pytest.raises(BundleInvalid, match="has bundle format 99, this version reads 3"):
        open_bundle(copy)


def test_a_bundle_of_the_first_format_says_to_export_again(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["text_layers"]
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format_version": 1}))

    with pytest.raises(BundleInvalid, match=r"has bundle format 1, .*prompt-serve export BACKBONE"):
        open_bundle(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_a_manifest_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)

    with pytest.raises(BundleInvalid, match="is not a manifest this version reads"):
        open_bundle(copy)
