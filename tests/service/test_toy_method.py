"""A method of another package: one file and one line are enough to train, store and serve it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_serve.client import Client
from prompt_serve.prompts.encodings import Dense
from prompt_serve.prompts.prompt_file import read_prompt_file
from tests.drawings import draw_dataset, draw_image
from tests.service.process import ROOT, Served
from tests.toy_method import SHIFT, install


def prompt_serve(installed: Path, *arguments: str) -> str:
    """Run the command in a new process that finds the package in ``installed``."""
    paths = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.serve
def test_a_toy_method_is_trained_stored_and_served(
    served: Served, tiny_folder: Path, tmp_path: Path
) -> None:
    installed, out = tmp_path / "installed", tmp_path / "colors.safetensors"
    install(installed, "toy_shift", SHIFT, {"shift": "METHOD", "broken": "NOTHING"})
    photos = draw_dataset(tmp_path / "photos", train=4, test=2)

    text = prompt_serve(installed, "train", "--method", "shift", "--help")
    assert "Settings of shift (nobody's):" in text
    assert "--first-shift FLOAT" in text
    assert "One vector for all words." in prompt_serve(installed, "methods")

    report = prompt_serve(
        installed, "train", str(photos), "--backbone", str(tiny_folder), "--out", str(out),
        "--method", "shift", "--first-shift", "0.25", "--shots", "3", "--epochs", "3",
        "--views", "0", "--no-cache",
    )  # fmt: skip
    assert "learned      128 numbers (learning rate 0.01)" in report

    prompt = read_prompt_file(out)
    assert prompt.method == "shift"
    assert prompt.training["first_shift"] == 0.25
    assert isinstance(prompt.text, Dense)

    # The service knows nothing of the package: a prompt file says how it is folded.
    with Client(served.url) as client:
        client.upload(out.read_bytes(), name="toy-colors")
        picture = draw_image(tmp_path / "red.png", (220, 30, 30), seed=7)
        [result] = client.classify([picture], "toy-colors")
        client.delete("toy-colors")
    assert result.predictions is not None
    [prediction] = result.predictions
    assert prediction.version == hashlib.sha256(out.read_bytes()).hexdigest()
    assert {score.class_name for score in prediction.classes} == {"blue", "green", "red", "yellow"}
