"""Scoring on a local Ray cluster: the rows of this process, also when a worker is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.dataset
import pytest

from prompt_serve.bundle import open_bundle, shipped_bundle
from tests.cli.conftest import Run, run
from tests.offline.prompts import zero_shot
from tests.service.prompts import picture

pytest.importorskip("ray")
pytestmark = pytest.mark.long

__all__ = ["run"]  # a fixture
N = 60
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "photos").mkdir()
    for index in range(N):
        (folder / "photos" / f"{index:03}.png").write_bytes(picture(index))
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    zero_shot(folder / "pets.safetensors", "cat", "dog", "fish")
    zero_shot(folder / "colors.safetensors", "red", "blue")
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "prompt_serve", "score", *map(str, words), "--no-progress"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found = pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["source"], row["task"]))


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [(r["source"], r["task"]) for r in found] == [(r["source"], r["task"]) for r in expected]
    for one, other in zip(found, expected, strict=True):
        for key in ("version", "class_name", "unknown", "labels", "error_code", "error"):
            assert one[key] == other[key]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def on_ray(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, "--engine", "ray", "--cores-per-worker", "1"),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=TIMEOUT_S,
    )


def test_ray_writes_the_parts_of_this_process(run: Run, files: Path, tmp_path: Path) -> None:
    words = [files / "photos", "--prompt", files / "pets.safetensors", "--prompt",
             files / "colors.safetensors", "--shard-size", 9]  # fmt: skip
    assert run("score", *words, "--out", tmp_path / "here").exit_code == 0

    done = on_ray(*words, "--out", tmp_path / "ray", "--save-embeddings", tmp_path / "kept",
                  "--workers", 2, "--json")  # fmt: skip

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["rows"], summary["errors"]) == (N + 1, 2 * N + 2, 2)
    parts = [sorted(path.name for path in (tmp_path / n).iterdir()) for n in ("here", "ray")]
    assert parts[0] == parts[1]
    same(rows_of(tmp_path / "ray"), rows_of(tmp_path / "here"))
    # The embeddings that were kept there score here.
    later = run("score", tmp_path / "kept", "--prompt", files / "pets.safetensors", "--out",
                tmp_path / "later")  # fmt: skip
    assert later.exit_code == 0, later.output
    expected = [row for row in rows_of(tmp_path / "here") if row["task"] == "pets"]
    same(rows_of(tmp_path / "later"), expected)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Encoders that are at work; Ray names a process for what it runs."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_killed_worker_loses_and_doubles_nothing(run: Run, files: Path, tmp_path: Path) -> None:
    words = [files / "photos", "--prompt", files / "pets.safetensors", "--shard-size", 3]
    assert run("score", *words, "--out", tmp_path / "here").exit_code == 0
    out, killed = tmp_path / "ray", 0

    with subprocess.Popen(
        command(*words, "--out", out, "--engine", "ray", "--workers", 1, "--cores-per-worker", 1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as started:
        process, give_up = psutil.Process(started.pid), time.monotonic() + TIMEOUT_S
        while started.poll() is None and time.monotonic() < give_up:
            parts = len([*out.glob("part-*")]) if out.exists() else 0
            # Once with some parts done, and once more with some further ones.
            if killed < 2 and parts > 4 * killed and (encoders := workers_of(process)):
                encoders[0].send_signal(signal.SIGKILL)
                killed += 1
                encoders[0].wait()
            time.sleep(0.02)
        output, _ = started.communicate(timeout=TIMEOUT_S)

    assert started.returncode == 0, output
    assert killed, "no worker was found to be killed"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (tmp_path / "here").iterdir()
    )
    same(rows_of(out), rows_of(tmp_path / "here"))


def test_embeddings_are_scored_by_tasks(run: Run, files: Path, tmp_path: Path) -> None:
    width = open_bundle(shipped_bundle("embedded")).manifest.backbone.embed_dim
    vectors = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    vectors[3] = 0.0
    np.save(tmp_path / "vectors.npy", vectors)
    words = [tmp_path / "vectors.npy", "--prompt", files / "pets.safetensors", "--shard-size", 90]
    assert run("score", *words, "--out", tmp_path / "here").exit_code == 0

    done = on_ray(*words, "--out", tmp_path / "ray")

    assert done.returncode == 0, done.stderr
    same(rows_of(tmp_path / "ray"), rows_of(tmp_path / "here"))


def test_a_dataset_of_ones_own_is_scored(files: Path, tmp_path: Path) -> None:
    program = f"""
import json, sys
import ray
from prompt_serve.ray import Workers, score_dataset
ray.init(include_dashboard=False, log_to_driver=False)
images = ray.data.read_binary_files({str(files / "photos")!r}, include_paths=True)
scored = score_dataset(
    images, [{str(files / "pets.safetensors")!r}, {str(files / "colors.safetensors")!r}],
    image="bytes", top_k=2, workers=Workers(count=1, cores=1), batch_size=16,
)
json.dump(scored.take_all(), open({str(tmp_path / "rows.json")!r}, "w"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    import prompt_serve

    model = prompt_serve.load([files / "pets.safetensors", files / "colors.safetensors"])
    images = sorted((files / "photos").iterdir())
    expected = {(row.source, row.task): row for row in model.predict(images, top_k=2).rows}
    assert len(rows) == len(expected)
    for row in rows:
        own = expected[row["source"], row["task"]]
        assert row["class_name"] == own.class_name
        assert row["probability"] == pytest.approx(own.probability, abs=1e-5)
        assert row["error_code"] == (own.error and own.error.code)


def test_there_is_no_cluster_at_a_wrong_address(files: Path, tmp_path: Path) -> None:
    done = on_ray(files / "photos", "--prompt", files / "pets.safetensors", "--out",
                  tmp_path / "x", "--address", "127.0.0.1:1")  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert "There is no Ray cluster at 127.0.0.1:1" in done.stderr
