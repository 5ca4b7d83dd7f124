"""``prompt-serve score --prompt``: parts, files, resuming, embeddings; without a service."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import prompt_serve
from prompt_serve.bundle import open_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.offline.bundles import BUNDLE_VARIABLE
from prompt_serve.prompts.prompt_file import read_prompt_file, write_prompt_file
from tests.cli.conftest import Run
from tests.offline.prompts import zero_shot, zero_shot_of
from tests.service.prompts import picture

N = 23
Files = dict[str, Path]


@pytest.fixture(scope="module")
def encoders(tiny_bundle: Path) -> Encoders:
    """Of a bundle that opens and encodes in a moment."""
    return Encoders.open(open_bundle(tiny_bundle), cuda_device=None, threads=1)


@pytest.fixture(autouse=True)
def bundle_variable(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLE_VARIABLE, str(tiny_bundle))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, encoders: Encoders) -> Files:
    """Prompt files, and a folder with a bad image among others."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "photos").mkdir()
    for index in range(N):
        (folder / "photos" / f"{index:03}.png").write_bytes(picture(index))
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    return {
        "photos": folder / "photos",
        "pets": zero_shot_of(encoders, folder / "pets.safetensors", "cat", "dog", "fish"),
        "colors": zero_shot_of(encoders, folder / "colors.safetensors", "red", "blue"),
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found = pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["source"], row["task"]))


def prompts(files: Files, *names: str) -> list[str]:
    return [word for name in names for word in ("--prompt", str(files[name]))]


def test_parts_have_a_row_per_image_and_prompt_as_predicted(
    run: Run, files: Files, tmp_path: Path
) -> None:
    done = run("score", files["photos"], *prompts(files, "pets", "colors"), "--out",
               tmp_path / "scores", "--shard-size", 10, "--top-k", 2)  # fmt: skip

    assert done.exit_code == 0, done.output
    assert f"{N + 1} images, {2 * N + 2} rows in 3 parts" in done.stdout
    rows = rows_of(tmp_path / "scores")
    images = sorted(files["photos"].iterdir())
    model = prompt_serve.load([files["pets"], files["colors"]], threads=1)
    expected = {(row.source, row.task): row for row in model.predict(images, top_k=2).rows}
    assert len(rows) == len(expected) == 2 * (N + 1)
    for row in rows:
        own = expected[row["source"], row["task"]]
        assert (row["version"], row["class_name"]) == (own.version, own.class_name)
        assert row["probability"] == pytest.approx(own.probability, abs=1e-5)
        assert [one["class_name"] for one in row["classes"]] == [c.class_name for c in own.classes]
        assert row["error"] == (own.error and own.error.detail)
        assert row["unknown"] == (None if own.error else own.unknown)


def test_the_metadata_says_what_a_part_was_made_of(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    assert run("score", files["photos"], *prompts(files, "pets"), "--out", out).exit_code == 0

    [part] = out.iterdir()
    metadata = pq.read_metadata(part).metadata or {}
    facts = json.loads(metadata[b"prompt_serve"])

    model = prompt_serve.load(files["pets"], threads=1)
    manifest = model.bundle.manifest
    assert facts["tasks"] == {"pets": model.tasks[0][1].version}
    assert facts["fingerprint"] == manifest.backbone.fingerprint
    assert facts["backbone"] == manifest.backbone.id
    assert (facts["precision"], facts["top_k"]) == ("fp32", 1)
    assert facts["tool_version"] == prompt_serve.__version__
    assert facts["shard"].startswith(f"{N + 1} files from {files['photos']}")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_has_the_rows_of_the_parts(
    run: Run, files: Files, tmp_path: Path, suffix: str
) -> None:
    words = [files["photos"], *prompts(files, "pets", "colors"), "--shard-size", 7]
    assert run("score", *words, "--out", tmp_path / "scores").exit_code == 0
    out = tmp_path / f"scores{suffix}"

    done = run("score", *words, "--out", out)

    assert done.exit_code == 0, done.output
    expected = rows_of(tmp_path / "scores")
    if suffix == ".parquet":
        found = pq.read_table(out).to_pylist()
    elif suffix == ".jsonl":
        found = list(map(json.loads, out.read_text().splitlines()))
    else:
        found = list(csv.DictReader(io.StringIO(out.read_bytes().decode())))
    found.sort(key=lambda row: (row["source"], row["task"]))
    for key in ("source", "task", "version", "class_name", "error_code"):
        assert [row[key] or None for row in found] == [row[key] for row in expected], key
    assert {path.name for path in tmp_path.iterdir()} - {"caches"} == {out.name, "scores"}


@pytest.mark.parametrize("missing", [(0,), (1,), (3,), (0, 2), (0, 1, 2, 3)])
def test_resume_scores_the_missing_parts_only(
    run: Run, files: Files, tmp_path: Path, missing: tuple[int, ...]
) -> None:
    out = tmp_path / "scores"
    words = [files["photos"], *prompts(files, "pets"), "--shard-size", 6, "--out", out]
    assert run("score", *words).exit_code == 0
    parts = sorted(out.iterdir())
    expected = rows_of(out)
    for index in missing:
        parts[index].unlink()
    written = {part: part.stat().st_mtime_ns for part in parts if part.exists()}

    refused, done = run("score", *words), run("score", *words, "--resume")

    assert refused.exit_code == (2 if written else 0)
    if written:
        assert "Add --resume" in refused.stderr
    assert done.exit_code == 0, done.output
    assert sorted(out.iterdir()) == parts
    assert rows_of(out) == expected
    assert {part: part.stat().st_mtime_ns for part in written} == written


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_run_that_is_killed_leaves_whole_parts_and_resumes(
    run: Run, files: Files, tmp_path: Path, parts: int
) -> None:
    words = [files["photos"], *prompts(files, "pets"), "--shard-size", 3, "--out"]
    assert run("score", *words, tmp_path / "whole").exit_code == 0
    expected, out = rows_of(tmp_path / "whole"), tmp_path / "scores"
    command = [sys.executable, "-m", "prompt_serve", "score", *words, out]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 120
        while len(list(out.glob("part-*.parquet"))) < parts and time.monotonic() < give_up:
            time.sleep(0.001)
        process.kill()

    left = sorted(out.glob("part-*.parquet"))
    assert len(left) >= parts
    assert all(pq.read_table(part).num_rows == 3 for part in left)
    assert rows_of(out) == [row for row in expected if row in rows_of(out)]
    assert run("score", *words, out, "--resume").exit_code == 0
    assert rows_of(out) == expected


@pytest.mark.parametrize(
    "change",
    [
        ["--top-k", "2"],
        ["--shard-size", "5"],
        ["PROMPT"],
        ["IMAGE"],
        ["OTHER PROMPT OF THE NAME"],
    ],
)
def test_parts_of_something_else_are_not_mixed(
    run: Run, files: Files, encoders: Encoders, tmp_path: Path, change: list[str]
) -> None:
    out, photos, pets = tmp_path / "scores", tmp_path / "photos", tmp_path / "pets.safetensors"
    shutil.copytree(files["photos"], photos)
    shutil.copy(files["pets"], pets)
    words = [photos, "--prompt", pets, "--shard-size", 30, "--out", out]
    assert run("score", *words).exit_code == 0
    before = rows_of(out)

    if change == ["PROMPT"]:
        words += prompts(files, "colors")
    elif change == ["IMAGE"]:
        (photos / "new.png").write_bytes(picture(99))
    elif change == ["OTHER PROMPT OF THE NAME"]:
        zero_shot_of(encoders, pets, "cat", "dog")
    else:
        words += change
    refused = run("score", *words, "--resume")
    kept = rows_of(out)
    replaced = run("score", *words, "--overwrite")

    assert refused.exit_code == 2
    assert "of other images, prompts, backbone, --top-k or --top-tasks" in refused.stderr
    assert kept == before
    assert replaced.exit_code == 0, replaced.output
    assert rows_of(out) != before or change == ["--shard-size", "5"]


def test_kept_embeddings_score_new_prompts_without_the_images(
    run: Run, files: Files, tmp_path: Path
) -> None:
    photos, kept = tmp_path / "photos", tmp_path / "embeddings"
    shutil.copytree(files["photos"], photos)
    words = ["--shard-size", "9", "--out"]
    first = run("score", photos, *prompts(files, "pets"), *words, tmp_path / "pets",
                "--save-embeddings", kept)  # fmt: skip
    direct = run("score", photos, *prompts(files, "colors"), *words, tmp_path / "direct")
    shutil.rmtree(photos)

    done = run("score", kept, *prompts(files, "colors"), "--out", tmp_path / "later")

    assert [run.exit_code for run in (first, direct, done)] == [0, 0, 0], done.output
    found, expected = rows_of(tmp_path / "later"), rows_of(tmp_path / "direct")
    assert [row["source"] for row in found] == [row["source"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one["class_name"], one["error_code"]) == (other["class_name"], other["error_code"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert (one["error"] is None) == (other["error"] is None)


def test_kept_embeddings_are_used_by_a_run_that_resumes(
    run: Run, files: Files, tmp_path: Path
) -> None:
    photos, kept, out = tmp_path / "photos", tmp_path / "embeddings", tmp_path / "scores"
    shutil.copytree(files["photos"], photos)
    words = [photos, *prompts(files, "pets"), "--out", out, "--save-embeddings", kept]
    assert run("score", *words).exit_code == 0
    expected = rows_of(out)
    for path in (*photos.iterdir(), *out.iterdir()):
        path.write_bytes(b"") if path.parent == photos else path.unlink()

    done = run("score", *words, "--resume")

    assert done.exit_code == 0, done.output
    for one, other in zip(rows_of(out), expected, strict=True):
        assert one["class_name"] == other["class_name"]


def _npy(path: Path, vectors: np.ndarray[Any, Any]) -> Path:
    np.save(path / "vectors.npy", vectors)
    return path / "vectors.npy"


def _parquet(path: Path, vectors: np.ndarray[Any, Any]) -> Path:
    table = pa.table({"embedding": pa.array(list(vectors), pa.list_(pa.float32()))})
    pq.write_table(table, path / "vectors.parquet", row_group_size=50)
    return path / "vectors.parquet"


def _arrow(path: Path, vectors: np.ndarray[Any, Any]) -> Path:
    width = vectors.shape[1]
    values = pa.array(vectors.reshape(-1), pa.float32())
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(values, width)})
    with (
        pa.OSFile(str(path / "vectors.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=33)
    return path / "vectors.arrow"


@pytest.mark.parametrize(
    ("form", "top_k"), [(_npy, 1), (_npy, 2), (_parquet, 1), (_parquet, 5), (_arrow, 2)]
)
def test_embeddings_are_scored_as_written_down(
    run: Run,
    files: Files,
    encoders: Encoders,
    tmp_path: Path,
    form: Callable[[Path, np.ndarray[Any, Any]], Path],
    top_k: int,
) -> None:
    width = encoders.ref.embed_dim
    vectors = np.random.default_rng(1).normal(size=(120, width)).astype(np.float32)
    vectors *= np.geomspace(1e-6, 1e6, 120, dtype=np.float32)[:, np.newaxis]  # of any norm
    vectors[7], vectors[11, 0] = 0.0, np.nan
    out = tmp_path / "scores"

    done = run("score", form(tmp_path, vectors), *prompts(files, "pets", "colors"), "--out", out,
               "--shard-size", 50, "--top-k", top_k)  # fmt: skip

    assert done.exit_code == 0, done.output
    table = pyarrow.dataset.dataset(out, format="parquet").to_table().to_pylist()
    model = prompt_serve.load([files["pets"], files["colors"]], threads=1)
    scale = model.bundle.manifest.logit_scale
    assert len(table) == 2 * len(vectors)
    for row_index, row in enumerate(table):
        vector, (name, task) = vectors[row_index // 2], model.tasks[row_index % 2]
        assert (row["task"], int(row["source"].rpartition("#")[2])) == (name, row_index // 2)
        if row_index // 2 in (7, 11):
            assert row["error_code"] == "image-invalid"
            assert (row["class_name"], row["probability"], row["classes"]) == (None, None, [])
            continue
        unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
        weights = np.exp(scale * (task.class_features @ unit) / task.temperature)
        expected = weights / weights.sum()
        order = np.argsort(-expected)[:top_k]
        assert [c["class_name"] for c in row["classes"]] == [task.class_names[i] for i in order]
        found = [c["probability"] for c in row["classes"]]
        assert found == pytest.approx(expected[order].tolist(), abs=1e-4)
        assert (row["class_name"], row["probability"]) == (
            row["classes"][0]["class_name"],
            found[0],
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "pets", "--prompt", "P", "--out", "x"], "--task is for a service"),
        (["--prompt", "P", "--out", "x", "--url", "http://h"], "--url is for a service"),
        (["--prompt", "P", "--out", "x", "--retry-for", "3"], "--retry-for is for a service"),
        (["--task", "pets", "--out", "x.csv", "--bundle", "b"], "--bundle is for scoring without"),
        (["--task", "p", "--out", "x.csv", "--save-embeddings", "e"], "needs --prompt FILE"),
        (["--prompt", "P", "--out", "-", "--resume"], "cannot be resumed"),
        (["--prompt", "P", "--out", "x.txt"], "expected the suffix"),
        (["--prompt", "missing.safetensors", "--out", "x"], "missing.safetensors"),
        (["--prompt", "P", "--prompt", "P", "--out", "x"], "same name"),
        (["--prompt", "P", "--out", "x", "--top-k", "0"], "x>=1"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(
    run: Run,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(files["pets"]) if word == "P" else word for word in words]

    done = run("score", files["photos"], *given)

    assert done.exit_code == 2
    assert message in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("x", ".x"))]


def test_json_is_the_summary_and_all_bad_images_fail(
    run: Run, files: Files, tmp_path: Path
) -> None:
    words = prompts(files, "pets")
    done = run("score", files["photos"], *words, "--out", tmp_path / "a", "--json")
    bad = run("score", files["photos"] / "bad.png", *words, "--out", tmp_path / "b", "--json")

    summary = json.loads(done.stdout)
    assert {key: summary[key] for key in ("parts", "images", "rows", "errors", "unknown")} == {
        "parts": 1,
        "images": N + 1,
        "rows": N + 1,
        "errors": 1,
        "unknown": 0,
    }
    assert bad.exit_code == 1
    assert len(rows_of(tmp_path / "b")) == 1


def test_embeddings_of_another_backbone_are_refused(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = zero_shot(tmp_path / "vit.safetensors", "cat", "dog", backbone="embedded-vit")
    kept = tmp_path / "embeddings"
    assert run("score", files["photos"], *prompts(files, "pets"), "--out", tmp_path / "scores",
               "--save-embeddings", kept).exit_code == 0  # fmt: skip

    monkeypatch.delenv(BUNDLE_VARIABLE)  # the shipped one that fits

    done = run("score", kept, "--prompt", other, "--out", tmp_path / "other")

    assert done.exit_code == 2
    assert "made by a backbone with the fingerprint" in done.stderr


@pytest.mark.parametrize(("form", "top_k"), [("jsonl", 1), ("jsonl", 3), ("csv", 1), ("csv", 2)])
@pytest.mark.parametrize("size", [5, 4096])
def test_standard_output_has_the_rows_of_the_parts(
    run: Run, files: Files, tmp_path: Path, form: str, top_k: int, size: int
) -> None:
    words = [files["photos"], *prompts(files, "pets", "colors"), "--top-k", top_k,
             "--shard-size", size]  # fmt: skip
    assert run("score", *words, "--out", tmp_path / f"scores.{form}").exit_code == 0

    done = run("score", *words, "--out", "-", "--format", form, "--no-progress")

    assert done.exit_code == 0, done.output
    assert done.stdout_bytes == (tmp_path / f"scores.{form}").read_bytes()
    assert done.stderr.startswith(f"standard output: {N + 1} images, {2 * N + 2} rows in ")


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_the_best_tasks_of_an_image_are_those_the_service_would_give(
    run: Run, files: Files, encoders: Encoders, tmp_path: Path, k: int
) -> None:
    """By the probability of the best class; those that find the image unknown come last."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    classes = {"pets": ("cat", "dog", "fish"), "colors": ("red", "blue"), "same": ("red", "blue")}
    made = [
        zero_shot_of(encoders, folder / f"{name}.safetensors", *own)
        for name, own in classes.items()
    ]
    pets = read_prompt_file(made[0])
    write_prompt_file(replace(pets, name="sure", unknown_below=0.999), folder / "sure.safetensors")
    words: list[Path | str] = [files["photos"]]
    for path in sorted(folder.iterdir()):
        words += ["--prompt", path]

    every = run("score", *words, "--out", "-", "--no-progress")
    best = run("score", *words, "--out", "-", "--no-progress", "--top-tasks", k)

    assert every.exit_code == best.exit_code == 0, best.output
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, every.stdout.splitlines()):
        by_image.setdefault(row["source"], []).append(row)
    assert {row["unknown"] for rows in by_image.values() for row in rows} >= {True, False}
    expected = [row for rows in by_image.values() for row in sorted(rows, key=_rank)[:k]]
    assert list(map(json.loads, best.stdout.splitlines())) == expected
    assert len(expected) == min(k, 4) * (N + 1)


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    return bool(row["unknown"]), -(row["probability"] or 0.0)


def test_parts_with_other_best_tasks_are_other_parts(
    run: Run, files: Files, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    words = [files["photos"], *prompts(files, "pets", "colors"), "--out", out]
    assert run("score", *words, "--top-tasks", 1).exit_code == 0

    refused = run("score", *words, "--top-tasks", 2, "--resume")
    done = run("score", *words, "--top-tasks", 1, "--resume")

    assert refused.exit_code == 2
    assert "of other images, prompts, backbone, --top-k or --top-tasks" in refused.stderr
    assert done.exit_code == 0
    facts = json.loads((pq.read_metadata(next(out.iterdir())).metadata or {})[b"prompt_serve"])
    assert facts["top_tasks"] == 1
    assert len(rows_of(out)) == N + 1
