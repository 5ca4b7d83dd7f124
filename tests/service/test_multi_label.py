"""A multi-label task from drawn images to the answers of a running service, as a user runs it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prompt_serve.cli.main import main
from prompt_serve.client import Client
from prompt_serve.prompts.prompt_file import read_prompt_file
from tests.drawings import COLORS
from tests.no_torch import run_without_torch
from tests.service.process import Served


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of images with stripes of none to three of four colors on gray."""
    folder, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows = ["path,label,split"]
    for number in range(90):
        names = rng.permutation(list(COLORS))[: rng.integers(0, 4)].tolist()
        pixels = rng.normal(128, 15, (48, 48, 3))
        for place, name in zip(rng.permutation(3), names, strict=False):
            pixels[:, 16 * place : 16 * place + 16] += np.array(COLORS[name]) - 128
        path = folder / f"{number:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        rows.append(f"{path.name},{';'.join(names)},{'test' if number % 3 == 2 else 'train'}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def test_what_is_learned_without_torch_is_precise(drawn: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "colors.safetensors", tmp_path / "log.jsonl"

    done = run_without_torch(
        tmp_path, "-m", "prompt_serve", "train", str(drawn), "--multi-label", "--out", str(out),
        "--backbone", "embedded-vit", "--no-cache", "--log", str(log),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    prompt = read_prompt_file(out)
    assert (prompt.method, prompt.class_names) == ("multi-label", tuple(sorted(COLORS)))
    # Chance is the share of the images with a label, 0.4.
    assert prompt.metrics["test"]["mean_average_precision"] > 0.9
    assert prompt.metrics["test"]["macro_f1"] > 0.75
    assert json.loads(log.read_text())["metrics"] == prompt.metrics
    assert "mAP  micro F1  macro F1  unknown" in done.stdout

    evaluated = run_without_torch(
        tmp_path, "-m", "prompt_serve", "evaluate", str(out), str(drawn), "--no-cache", "--json",
    )  # fmt: skip
    found = json.loads(evaluated.stdout)
    test = prompt.metrics["test"]
    assert found["mean_average_precision"] == test["mean_average_precision"]
    assert list(found["positives"].values()) == test["positives"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "dip"), "omit --method dip"),
        (("--shots", "4"), "--multi-label does not take --shots."),
        (("--template", "a {}", "--open-vocabulary"), "does not take --template"),
        (("--method", "class-vectors", "--no-text-prior"), "does not take --text-prior."),
        (("--seeds", "1,2"), "does not take --seeds."),
    ],
)
def test_options_that_do_not_apply_are_refused(
    drawn: Path, tmp_path: Path, tiny_folder: Path, options: tuple[str, ...], reason: str
) -> None:
    out = tmp_path / "x.safetensors"
    output = run(
        "train", drawn, "--multi-label", "--out", out, "--backbone", tiny_folder, *options,
        status=2,
    )  # fmt: skip
    assert reason in output
    assert not out.exists()


@pytest.mark.serve
def test_learned_uploaded_and_asked(
    served: Served, drawn: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_URL", served.url)
    backbone = ("--backbone", tiny_folder, "--no-cache")
    files = []
    for folder in ("first", "second"):
        out = tmp_path / folder / "stripes.safetensors"
        run("train", drawn, "--multi-label", "--out", out, "--bits", 2,
            "--method", "class-vectors", *backbone)  # fmt: skip
        files.append(out)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "labels           independent" in run("inspect", files[0])
    assert "micro F1" in run("evaluate", files[0], drawn, *backbone)
    report = run("evaluate", files[0], drawn, "--report", tmp_path / "r.html", *backbone, status=2)
    assert "--report shows one class per image" in report

    run("tasks", "upload", files[0])
    image = drawn.parent / "00.png"
    with Client(served.url) as client:
        answers = client.classify(image, "stripes", top_k=4).predictions
        scored = next(iter(client.score([image], "stripes")))
        info = client.task("stripes")
    assert info.thresholds is not None
    assert answers is not None
    answer = answers[0]
    limits = dict(zip(info.class_names, info.thresholds, strict=True))
    above = [c.class_name for c in answer.classes if c.probability >= limits[c.class_name]]
    assert answer.labels == above
    assert scored.labels == tuple(above)

    named = ", ".join(above) or "none"
    assert f"stripes  labels: {named}\n" in run("classify", image, "--task", "stripes")
    run("score", drawn.parent, "--task", "stripes", "--out", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = {Path(row["source"]).name: json.loads(row["labels"]) for row in csv.DictReader(file)}
    assert rows["00.png"] == above
    assert {len(labels) for labels in rows.values()} > {1}
