"""A task as one ONNX file gives the answers of the service, in Python and in a real browser."""

import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from prompt_serve.bundle import Bundle
from prompt_serve.cli.main import main
from prompt_serve.client import Client
from prompt_serve.errors import ConfigInvalid, ExportParityFailed
from prompt_serve.export.task import parity
from prompt_serve.export.task.build import export_task
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch, LabelVectors
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.schemas import TaskPrediction
from prompt_serve.training.clip.backbone import Backbone
from tests.npm import check_programs, install
from tests.required import program_missing
from tests.service.http.browser_tab import CHROMIUM, PATIENCE_MS
from tests.service.process import ROOT, Served
from tests.service.prompts import (
    Numbers,
    deep_text,
    image_prompts,
    learned_prompt,
    picture,
    probed,
    unprobed,
)

pytestmark = [pytest.mark.serve, pytest.mark.slow]
CLASSES = ("cat", "dog", "zebra crossing", "Bücherregal", 'a "quoted" name')
IMAGES = [picture(seed, size=size) for seed, size in enumerate([(48, 40), (32, 32), (90, 33)])]
# float32 rounding of features, times a logit scale of at most 100.
ROUNDING = 1e-4
EXAMPLES = ROOT / "examples"


def class_vectors(width: int) -> ClassVectors:
    numbers = Numbers(3)
    scales = np.full(len(CLASSES), 20, dtype=np.float16)
    return ClassVectors(rows=numbers(len(CLASSES), width), scales=scales)


def label_vectors(width: int) -> LabelVectors:
    numbers = Numbers(4)
    half = np.full(len(CLASSES), 0.5, dtype=np.float16)
    return LabelVectors(
        rows=numbers(len(CLASSES), width), scales=20 * half, offsets=numbers(5), thresholds=half
    )


def prompts_of(backbone: Backbone) -> dict[str, Prompt]:
    """One prompt of every kind that is served, with random numbers."""
    width, tower = backbone.ref.text_width, backbone.image_tower
    e = backbone.embed_dim
    prompts = {
        "low rank": learned_prompt(backbone, CLASSES),
        "class-specific": learned_prompt(backbone, CLASSES, dense=True),
        "words alone": probed(unprobed(backbone, CLASSES, None, method="zero-shot"), backbone),
        "class vectors": probed(
            replace(unprobed(backbone, CLASSES, None), classes=class_vectors(e)), backbone
        ),
        "multi-label": probed(
            replace(unprobed(backbone, CLASSES, None), classes=label_vectors(e)), backbone
        ),
        **{
            name: probed(unprobed(backbone, CLASSES, text), backbone)
            for name, text in deep_text(width).items()
        },
        **{
            name: probed(unprobed(backbone, CLASSES, text, image), backbone)
            for name, (text, image) in image_prompts(width, tower.width).items()
        },
    }
    low = prompts["low rank"]
    prompts["calibrated"] = replace(low, temperature=2.5, unknown_below=0.21)
    directions = Numbers(5)(3, e)
    for name, threshold in {"all unlike": 0.99, "some unlike": 0.0}.items():
        sketch = ImageSketch(means=directions)
        prompts[name] = replace(low, sketch=sketch, unlike_below=threshold)
    return prompts


@pytest.fixture(scope="module")
def prompts(tiny_backbone: Backbone) -> dict[str, Prompt]:
    return prompts_of(tiny_backbone)


KINDS = (
    "low rank", "class-specific", "words alone", "class vectors", "multi-label", "deep DIP",
    "deep CoOp", "deep QCoOp", "ADAPT", "ADAPT, one block pruned", "ADAPT, all pruned", "VPT",
    "deep VPT", "ADAPT of both branches", "MaPLe", "IVLP", "DIP of the image branch", "calibrated",
    "all unlike", "some unlike",
)  # fmt: skip


def answers(file: Path, bundle: Bundle) -> list[dict[str, Any]]:
    """The answers of a file for all images, as one batch, in the form of the service's."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = np.stack([pixels_from_bytes(data, bundle.manifest.preprocessing) for data in IMAGES])
    found = parity.answers_of(session, pixels)
    names = found["class_names"].tolist()
    assert names == json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    return [
        {
            "best": names[int(found["probabilities"][i].argmax())],
            "label": str(found["label"][i]) if "label" in found else None,
            "labels": {n for n, on in zip(names, found["labels"][i], strict=True) if on}
            if "labels" in found
            else None,
            "unknown": bool(found["unknown"][i]),
            "scores": dict(zip(names, found["probabilities"][i].tolist(), strict=True)),
        }
        for i in range(len(IMAGES))
    ]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


def served_answers(client: Client, name: str, data: bytes) -> list[TaskPrediction]:
    """The answers of the service."""
    client.upload(data, name=name)
    results = client.classify(IMAGES, name, top_k=len(CLASSES))
    assert all(result.predictions for result in results)
    return [result.predictions[0] for result in results if result.predictions]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prompt_gives_the_answers_of_the_service(
    kind: str, prompts: dict[str, Prompt], bundle: Bundle, client: Client, tmp_path: Path
) -> None:
    data = to_bytes(prompts[kind])
    lines: list[str] = []

    export_task(data, bundle, tmp_path / "task.onnx", precision="fp32", report=lines.append)

    assert [line.split()[1] for line in lines[:3]] == ["features", "cosine", "probabilities"]
    onnx.checker.check_model(onnx.load(tmp_path / "task.onnx"))
    name = f"exported-{KINDS.index(kind)}"
    expected = served_answers(client, name, data)
    found = answers(tmp_path / "task.onnx", bundle)
    for own, prediction in zip(found, expected, strict=True):
        scores = {one.class_name: one.probability for one in prediction.classes}
        assert own["scores"] == pytest.approx(scores, abs=ROUNDING)
        assert own["best"] == prediction.classes[0].class_name
        assert own["unknown"] == prediction.unknown
        if kind == "multi-label":
            assert own["labels"] == set(prediction.labels or ())
            assert own["label"] is None
        else:
            assert own["label"] == own["best"]
    client.delete(name)


def test_equal_prompts_give_equal_files(
    prompts: dict[str, Prompt], bundle: Bundle, tmp_path: Path
) -> None:
    data = to_bytes(prompts["MaPLe"])
    for name in ("a", "b"):
        export_task(data, bundle, tmp_path / name, precision="fp32")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["low rank", "class vectors", "multi-label", "MaPLe", "VPT"])
def test_int8_is_smaller_and_of_the_same_mind(
    kind: str, prompts: dict[str, Prompt], bundle: Bundle, tmp_path: Path
) -> None:
    data, sizes = to_bytes(prompts[kind]), {}
    for precision in ("fp32", "int8"):
        out = tmp_path / f"{precision}.onnx"
        exported = export_task(data, bundle, out, precision=precision)
        sizes[precision] = exported.size_bytes
    exact, rounded = (answers(tmp_path / f"{p}.onnx", bundle) for p in ("fp32", "int8"))
    assert sizes["int8"] < 0.6 * sizes["fp32"]
    assert 1e-6 < exported.parity["features"] < 3e-2
    for own, other in zip(exact, rounded, strict=True):
        assert own["scores"] == pytest.approx(other["scores"], abs=0.25)


def test_a_file_that_differs_is_not_written(
    prompts: dict[str, Prompt], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "task.onnx"
    out.write_bytes(b"the former one")
    monkeypatch.setattr(parity, "PROBABILITY_LIMIT", -1.0)

    with pytest.raises(ExportParityFailed, match=r"probabilities differ by .*allowed"):
        export_task(to_bytes(prompts["low rank"]), bundle, out, precision="fp32")

    assert out.read_bytes() == b"the former one"
    assert [path.name for path in tmp_path.iterdir()] == ["task.onnx"]


def test_a_bundle_of_another_precision_is_refused(
    prompts: dict[str, Prompt], bundle: Bundle, tmp_path: Path
) -> None:
    rounded = replace(bundle, manifest=bundle.manifest.model_copy(update={"precision": "int8"}))
    data = to_bytes(prompts["low rank"])

    with pytest.raises(ConfigInvalid, match="is int8; a task of fp32 needs a bundle of fp32"):
        export_task(data, rounded, tmp_path / "task.onnx", precision="fp32")
    # Its encoder is taken as it is, and compared with itself.
    exported = export_task(data, rounded, tmp_path / "task.onnx", precision="int8")
    assert exported.parity["features"] < 1e-5


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


@pytest.fixture(scope="module")
def exported(
    prompts: dict[str, Prompt], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with a prompt file, its ONNX file, written by the command, and images."""
    folder = tmp_path_factory.mktemp("edge")
    (folder / "pets.safetensors").write_bytes(to_bytes(prompts["calibrated"]))
    document = json.loads(
        run(
            "export-task", folder / "pets.safetensors", "-o", folder / "task.onnx",
            "--bundle", bundle.path, "--json",
        )
    )  # fmt: skip
    assert document["class_names"] == list(CLASSES)
    assert document["size_bytes"] == (folder / "task.onnx").stat().st_size
    assert document["precision"] == "fp32"
    assert set(document["parity"]) == {"features", "cosine", "probabilities", "agreement"}
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(data)
    return folder


def test_the_command_says_which_bundle_is_missing(exported: Path) -> None:
    said = run("export-task", exported / "pets.safetensors", "-o", exported / "other", status=2)
    assert "which is not shipped. Export it once with: prompt-serve export" in said
    assert not (exported / "other").exists()


def test_the_python_example_gives_the_answers_of_the_file(exported: Path, bundle: Bundle) -> None:
    files = [f"{number}.png" for number in range(len(IMAGES))]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "edge.py", "task.onnx", *files],
        cwd=exported, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line, file, own in zip(
        done.stdout.splitlines(), files, answers(exported / "task.onnx", bundle), strict=True
    ):
        best = own["scores"][own["best"]]
        assert line.startswith(f"{file} {own['best']} {best:.1%} ")
        assert line.endswith("unknown") == own["unknown"]


@pytest.fixture(scope="module")
def site(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the browser example, with onnxruntime-web from npm and the file beside it."""
    check_programs("THE BROWSER EXAMPLE")
    folder = tmp_path_factory.mktemp("browser") / "site"
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(EXAMPLES / "browser", folder, ignore=ignored)
    install(folder, "THE BROWSER EXAMPLE")
    shutil.copy(exported / "task.onnx", folder)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_browser_example_gives_the_answers_of_the_file(
    site: str, exported: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """Images have the tower's side, so that nothing is resized."""
    if CHROMIUM is None:
        program_missing("THE BROWSER EXAMPLE IS NOT TESTED HERE: apt-get install chromium")
    expected = answers(exported / "task.onnx", bundle)
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(site)
        output = page.locator("output")
        expect(output).to_have_text("ready", timeout=PATIENCE_MS)
        for number, own in enumerate(expected):
            pixels = pixels_from_bytes(IMAGES[number], bundle.manifest.preprocessing)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            page.evaluate("document.querySelector('output').value = 'waits'")
            page.set_input_files(
                "input",
                {"name": f"{number}.png", "mimeType": "image/png", "buffer": file.getvalue()},
            )
            expect(output).to_contain_text("zebra crossing", timeout=PATIENCE_MS)
            lines = output.inner_text().splitlines()
            assert (lines[0] == "unknown") == own["unknown"]
            scores = dict(line.split("\t") for line in lines if line != "unknown")
            found = {name: float(score) for name, score in scores.items()}
            assert found == pytest.approx(own["scores"], abs=ROUNDING)
        browser.close()
    assert complaints == []
