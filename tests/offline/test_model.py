"""``prompt_serve.load``: prompts in this process, images of every form, no torch."""

import html
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import prompt_serve
from prompt_serve.bundle import SHIPPED, shipped_bundle
from prompt_serve.errors import (
    BackboneMismatch,
    BackboneUnavailable,
    BundleInvalid,
    ConfigInvalid,
    ImageInvalid,
    PromptFileInvalid,
    TaskNotFound,
)
from prompt_serve.offline.model import Model
from tests.golden import GOLDEN, path_of
from tests.no_torch import run_without_torch
from tests.offline.prompts import zero_shot
from tests.service.prompts import picture


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zero_shot(tmp_path_factory.mktemp("pets") / "pets.safetensors", "cat", "dog", "fish")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zero_shot(tmp_path_factory.mktemp("colors") / "colors.safetensors", "red", "blue")


@pytest.fixture(scope="module")
def model(pets: Path) -> Model:
    return prompt_serve.load(pets, threads=1)


FORMS = ["text", "path", "bytes", "bytearray", "file", "PIL", "array", "PIL with alpha"]


def in_form(form: str, path: Path) -> Any:
    image = Image.open(path).convert("RGB")
    return {
        "text": str(path),
        "path": path,
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "file": io.BytesIO(path.read_bytes()),
        "PIL": image,
        "array": np.asarray(image),
        "PIL with alpha": image.convert("RGBA"),
    }[form]


@pytest.mark.parametrize("form", FORMS)
def test_an_image_of_any_form_has_the_answer_of_its_file(
    model: Model, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(picture(3))

    found, expected = model.predict(in_form(form, path)), model.predict(path)

    assert found.class_name == expected.class_name
    assert found.classes == expected.classes
    assert sum(score.probability for score in found.classes) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 41])
def test_a_list_has_the_answer_of_each_image_in_order(model: Model, n: int) -> None:
    images = [picture(seed) for seed in range(n)]

    found = model.predict(images)

    assert len(found) == n
    for index, (image, scores) in enumerate(zip(images, found, strict=True)):
        assert [row.index for row in scores.rows] == [index]
        alone = model.predict(image)
        assert scores.class_name == alone.class_name
        assert scores.probability == pytest.approx(alone.probability, abs=1e-5)


BAD = {
    "missing.png": None,
    "empty.png": b"",
    "text.png": b"no image",
    "cut.png": picture(0)[:60],
    "zeros.jpg": bytes(2000),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_image_is_an_error_in_a_list_and_is_raised_alone(
    model: Model, tmp_path: Path, name: str
) -> None:
    path, data = tmp_path / name, BAD[name]
    if data is not None:
        path.write_bytes(data)

    found = model.predict([picture(0), path, picture(1)])

    assert [scores.error is None for scores in found] == [True, False, True]
    assert found[1].source == str(path)
    assert (found[1].class_name, found[1].classes) == (None, ())
    with pytest.raises(ImageInvalid, match=r"cannot be read|empty|not an image|damaged"):
        model.predict(path)


def test_several_prompts_share_the_bundle_and_are_told_by_name(pets: Path, colors: Path) -> None:
    both = prompt_serve.load([pets, colors], threads=1)
    renamed = prompt_serve.load({"animal": pets, "color": colors}, threads=1)

    found, again = both.predict(picture(0)), renamed.predict(picture(0))

    assert both.names == ("pets", "colors")
    assert found["pets"].class_name in ("cat", "dog", "fish")
    assert found["colors"].class_name in ("red", "blue")
    assert again["color"].classes == found["colors"].classes
    with pytest.raises(ConfigInvalid, match=r"2 prompts; name one: scores\['pets'\]"):
        _ = found.class_name
    with pytest.raises(TaskNotFound, match="Did you mean 'colors'"):
        found["colours"]


def test_files_of_one_name_need_a_mapping(pets: Path, tmp_path: Path) -> None:
    other = tmp_path / "pets.safetensors"
    other.write_bytes(pets.read_bytes())

    with pytest.raises(ConfigInvalid, match="same name; give a mapping"):
        prompt_serve.load([pets, other])
    assert prompt_serve.load({"a": pets, "b": other}, threads=1).names == ("a", "b")


@pytest.mark.parametrize("shipped", SHIPPED)
def test_the_bundle_is_the_shipped_one_of_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: str
) -> None:
    file = zero_shot(tmp_path / "own.safetensors", "cat", "dog", backbone=shipped)
    other = next(name for name in SHIPPED if name != shipped)

    assert prompt_serve.load(file, threads=1).bundle.path == shipped_bundle(shipped)
    monkeypatch.setenv("PROMPT_SERVE_BUNDLE", other)
    with pytest.raises(BackboneMismatch, match="was learned on"):
        prompt_serve.load(file, threads=1)
    # An argument wins over the environment.
    named = prompt_serve.load(file, bundle=shipped_bundle(shipped), threads=1)
    assert named.bundle.manifest.backbone.id == shipped


@pytest.mark.parametrize("name", list(GOLDEN)[:5])
def test_a_prompt_of_another_backbone_names_the_ways_out(name: str) -> None:
    with pytest.raises(BackboneUnavailable, match=r"--bundle or PROMPT_SERVE_BUNDLE"):
        prompt_serve.load(path_of(name))
    with pytest.raises(BundleInvalid, match="no bundle in"):
        prompt_serve.load(path_of(name), bundle="nowhere")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08" + bytes(40), b"PK\3\4", b"GIF89a"])
def test_a_file_that_is_no_prompt_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "wrong.safetensors"
    file.write_bytes(content)

    with pytest.raises(PromptFileInvalid, match=r"wrong\.safetensors"):
        prompt_serve.load(file)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "CPU", ""])
def test_an_unknown_device_is_refused(pets: Path, device: str) -> None:
    with pytest.raises(ConfigInvalid, match="expected cpu, cuda or cuda:N"):
        prompt_serve.load(pets, device=device)


def test_results_are_tables_and_frames(model: Model, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&.png"
    odd.write_bytes(b"no image")

    found = model.predict([odd, picture(0)])

    assert "&lt;b&gt;&amp;.png" in found._repr_html_()
    assert (found[1].class_name or "?") in found[1]._repr_html_()
    frame = found.to_pandas()
    assert list(frame["class_name"].isna()) == [True, False]
    assert frame["probability"][1] == found[1].probability
    assert "not an image" in frame["error"][0]


@pytest.mark.parametrize("name", ["<script>", 'a"b', "it's", "猫", "&amp;"])
def test_a_model_is_a_table_in_a_notebook(tmp_path: Path, name: str) -> None:
    many = [f"class {index}" for index in range(1200)]
    prompts = {
        name: zero_shot(tmp_path / "few.safetensors", name, "dog"),
        "many": zero_shot(tmp_path / "many.safetensors", *many),
    }

    shown = prompt_serve.load(prompts, threads=1)._repr_html_()

    escaped = html.escape(name)
    assert f"<td>{escaped}</td><td>2</td><td>{escaped}, dog</td>" in shown
    assert "<td>many</td><td>1,200</td><td>class 0, class 1, " in shown
    assert "class 8" not in shown
    assert "embedded" in shown
    assert "<script" not in shown


def test_predicting_needs_neither_torch_nor_the_service(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture(0))
    code = (
        "import sys, prompt_serve\n"
        f"print(prompt_serve.load({str(pets)!r}).predict({str(tmp_path / 'cat.png')!r}).class_name)"
        "\nprint({'torch', 'bentoml', 'fastapi', 'sqlalchemy', 'httpx'} & set(sys.modules))"
    )

    done = run_without_torch(tmp_path / "site", "-c", code)

    assert done.returncode == 0, done.stderr
    name, loaded = done.stdout.splitlines()
    assert name in ("cat", "dog", "fish")
    assert loaded == "set()"


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import prompt_serve\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before}"
        " & {'numpy', 'onnxruntime', 'PIL', 'pydantic', 'httpx', 'safetensors'})"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
