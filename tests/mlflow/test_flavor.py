"""The MLflow flavor: models that MLflow saves, registers, loads and scores with."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prompt_serve
from prompt_serve.bundle import shipped_bundle
from prompt_serve.errors import BackboneMismatch, ConfigInvalid, PromptFileInvalid, PromptServeError
from tests.no_torch import run_without_torch
from tests.offline.prompts import zero_shot
from tests.service.prompts import picture

mlflow = pytest.importorskip("mlflow")

# MLflow warns about its own annotations and about its use of other packages.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning:mlflow")]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    return {
        "pets": zero_shot(folder / "pets.safetensors", "cat", "dog", "fish"),
        "colors/all": zero_shot(folder / "colors.safetensors", "red", "<b>blue</b>", "grün"),
    }


@pytest.fixture(scope="module")
def saved(prompts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of both prompts."""
    from prompt_serve.mlflow import save_model

    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(prompts, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(picture(seed))
    return paths


def in_form(form: str, images: list[Path]) -> Any:
    import numpy as np
    import pandas as pd

    texts, data = [str(path) for path in images], [path.read_bytes() for path in images]
    return {
        "list of texts": texts,
        "list of bytes": data,
        "list of both": [texts[0], data[1], texts[2]],
        "frame of texts": pd.DataFrame({"image": texts, "label": [0, 1, 2]}),
        "frame of bytes": pd.DataFrame({"any name": data}, index=[7, 8, 9]),
        "series": pd.Series(texts),
        "array": np.array(texts, dtype=object),
    }[form]


FORMS = [
    "list of texts", "list of bytes", "list of both", "frame of texts", "frame of bytes", "series",
    "array",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_pyfunc_answers_as_the_loaded_prompts(
    saved: Path, prompts: dict[str, Path], images: list[Path], form: str
) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    expected = prompt_serve.load(prompts, threads=1).predict(images)

    found = model.predict(in_form(form, images))

    assert list(found["task"]) == ["pets", "colors/all"] * 3
    assert list(found["class_name"]) == [row.class_name for row in expected.rows]
    assert list(found["probability"]) == pytest.approx([r.probability for r in expected.rows])
    assert list(found["version"]) == [row.version for row in expected.rows]
    for probabilities, row in zip(found["probabilities"], expected.rows, strict=True):
        assert probabilities == pytest.approx({c.class_name: c.probability for c in row.classes})
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("form", ["text", "bytes"])
def test_one_image_is_one_row_per_prompt(saved: Path, images: list[Path], form: str) -> None:
    image = str(images[0]) if form == "text" else images[0].read_bytes()

    found = mlflow.pyfunc.load_model(str(saved)).predict(image)

    assert list(found["task"]) == ["pets", "colors/all"]
    assert list(found["source"]) == [image if form == "text" else ""] * 2


@pytest.mark.parametrize("top_k", [1, 2, 3, 50])
def test_top_k_is_a_parameter(saved: Path, images: list[Path], top_k: int) -> None:
    model = mlflow.pyfunc.load_model(str(saved))

    found = model.predict([str(images[0])], params={"top_k": top_k})

    assert [len(classes) for classes in found["probabilities"]] == [min(top_k, 3)] * 2


@pytest.mark.parametrize("bad", ["/none/a.png", b"", b"no image", "http://127.0.0.1:9/a.png"])
def test_a_bad_image_is_a_row_with_an_error(
    saved: Path, images: list[Path], bad: str | bytes
) -> None:
    found = mlflow.pyfunc.load_model(str(saved)).predict([str(images[0]), bad])

    assert list(found["error"].isna()) == [True, True, False, False]
    assert list(found["class_name"].isna()) == [False, False, True, True]
    assert list(found["probabilities"])[2:] == [{}, {}]


def test_a_request_of_a_server_is_decoded_and_reads_no_file(
    saved: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    model = mlflow.pyfunc.load_model(str(saved))

    def asked(image: str) -> Any:
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}})
        return invocations(body, "application/json", model, model.metadata.get_input_schema())

    answer = asked(base64.b64encode(images[0].read_bytes()).decode())
    assert answer.status == 200, answer.response
    [pets, colors] = json.loads(answer.response)["predictions"]
    assert pets["class_name"] in ("cat", "dog", "fish")
    assert set(colors["probabilities"]) == {"red", "<b>blue</b>", "grün"}
    # The name of an image that is there, and base64 of something else.
    (tmp_path / "abcd").write_bytes(images[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    [pets, colors] = json.loads(asked("abcd").response)["predictions"]
    assert (pets["class_name"], colors["class_name"]) == (None, None)
    assert mlflow.pyfunc.load_model(str(saved)).predict("abcd")["class_name"][0]


@pytest.mark.parametrize("kind", ["shipped", "folder", "with another's text side", "not copied"])
def test_the_bundle_comes_along_unless_the_package_has_it(
    prompts: dict[str, Path], images: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:  # fmt: skip
    import shutil

    from prompt_serve.mlflow import load_model, save_model

    backbone = "embedded-vit" if kind == "with another's text side" else "embedded"
    prompt = zero_shot(tmp_path / "own.safetensors", "cat", "dog", backbone=backbone)
    moved = tmp_path / "moved" / backbone
    if kind != "shipped":
        for name in ("embedded", "embedded-vit"):
            shutil.copytree(shipped_bundle(name), tmp_path / "moved" / name)
    bundle = None if kind == "shipped" else moved
    save_model(prompt, tmp_path / "model", bundle=bundle, copy_bundle=kind != "not copied")
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)

    copied = {path.parent.name for path in (tmp_path / "model").rglob("manifest.json")}
    assert copied == {
        "shipped": set(), "folder": {"embedded"}, "not copied": set(),
        "with another's text side": {"embedded", "embedded-vit"},
    }[kind]  # fmt: skip
    if kind == "not copied":
        monkeypatch.setenv("PROMPT_SERVE_BUNDLE", str(shipped_bundle(backbone)))
    found = load_model(str(tmp_path / "model"), threads=1).predict(images[0])
    expected = prompt_serve.load(prompt, threads=1).predict(images[0])
    assert found.classes == expected.classes
    assert found["own"].version == expected["own"].version


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("none", PromptFileInvalid),
        ("text", PromptFileInvalid),
        ("another bundle", BackboneMismatch),
        ("no prompt", ConfigInvalid),
        ("no bundle", PromptServeError),
    ],
)
def test_a_model_that_cannot_predict_is_not_written(
    prompts: dict[str, Path], tmp_path: Path, case: str, kind: type[PromptServeError]
) -> None:
    from prompt_serve.mlflow import save_model

    (tmp_path / "text.safetensors").write_text("Buy milk.\n")
    prompt: Any = {
        "none": tmp_path / "none.safetensors", "text": tmp_path / "text.safetensors",
        "no prompt": [],
    }.get(case, prompts["pets"])  # fmt: skip
    bundle: Any = {"another bundle": "embedded-vit", "no bundle": tmp_path}.get(case)

    with pytest.raises(kind):
        save_model(prompt, tmp_path / "model", bundle=bundle)
    assert not (tmp_path / "model").exists()


def test_the_model_describes_itself(saved: Path, prompts: dict[str, Path]) -> None:
    from mlflow.models import Model

    model = Model.load(str(saved))
    flavor = model.flavors["prompt_serve"]

    assert set(flavor["prompts"]) == set(prompts)
    assert flavor["backbone"] == "embedded"
    assert model.flavors["python_function"]["loader_module"] == "prompt_serve.mlflow"
    assert model.signature.inputs.input_types()[0].name == "binary"
    assert "probability" in model.signature.outputs.input_names()
    requirements = (saved / "requirements.txt").read_text().split()
    assert f"prompt-serve[mlflow,serve]=={prompt_serve.__version__}" in requirements
    assert not any(line.startswith("torch") for line in requirements)
    example = model.load_input_example(str(saved))
    assert len(mlflow.pyfunc.load_model(str(saved)).predict(example)) == 2


@pytest.mark.parametrize(
    "options", [{"pip_requirements": ["a==1"]}, {"extra_pip_requirements": ["b"]}]
)
def test_requirements_can_be_given(
    prompts: dict[str, Path], tmp_path: Path, options: dict[str, list[str]]
) -> None:
    from prompt_serve.mlflow import save_model

    save_model(prompts["pets"], tmp_path / "model", **options)  # type: ignore[arg-type]

    lines = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert {"a==1", "b"} & set(lines)
    assert any(line.startswith("prompt-serve") for line in lines) == ("b" in lines)


@pytest.mark.long
def test_a_registered_model_is_loaded_by_its_version(
    prompts: dict[str, Path], images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLflow's tracking and registry in SQLite."""
    from prompt_serve.mlflow import load_model, log_model

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        with mlflow.start_run() as run:
            info = log_model(prompts, name="tasks", registered_model_name="pets")
        again = log_model(prompts["pets"], registered_model_name="pets")

        assert (info.registered_model_version, again.registered_model_version) == (1, 2)
        assert info.run_id == run.info.run_id
        uris = (info.model_uri, "models:/pets/1", f"runs:/{run.info.run_id}/tasks")
        answers = [mlflow.pyfunc.load_model(uri).predict([str(images[0])]) for uri in uris]
        assert all(answer.equals(answers[0]) for answer in answers)
        assert load_model("models:/pets/2").names == ("pets",)
        assert load_model("models:/pets/1").names == tuple(prompts)
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.long
def test_a_model_is_loaded_where_there_is_no_torch(
    saved: Path, images: list[Path], tmp_path: Path
) -> None:
    code = (
        "import sys, warnings, mlflow.pyfunc\n"
        f"found = mlflow.pyfunc.load_model({str(saved)!r}).predict([{str(images[0])!r}])\n"
        "print(found['class_name'][0], 'torch' in sys.modules)"
    )

    done = run_without_torch(tmp_path, "-c", code)

    assert done.returncode == 0, done.stderr
    name, torch = done.stdout.split()
    assert name in ("cat", "dog", "fish")
    assert torch == "False"


def test_the_rest_of_the_package_does_not_import_mlflow() -> None:
    code = (
        "import sys, prompt_serve.offline.model, prompt_serve.cli.main, prompt_serve.client\n"
        "print('mlflow' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
