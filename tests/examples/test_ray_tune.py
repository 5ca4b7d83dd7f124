"""The search with Ray Tune runs as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_serve.prompts.prompt_file import read_prompt_file
from tests.drawings import draw_dataset
from tests.service.process import ROOT

pytest.importorskip("ray")
TIMEOUT_S = 500


@pytest.mark.long
def test_the_search_writes_the_prompt_of_the_best_trial(tiny_folder: Path, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "paints", train=6, test=3)

    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "ray_tune.py", "paints", "best.safetensors",
         "--backbone", tiny_folder, "--trials", "2", "--epochs", "2"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "best of 2: " in done.stdout
    prompt = read_prompt_file(tmp_path / "best.safetensors")
    assert f"test {prompt.metrics['test']['accuracy']:.1%}" in done.stdout
    assert f"'n_ctx': {prompt.training['n_ctx']}" in done.stdout
