"""``prompt-serve score``: from a folder of images to a table."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prompt_serve.cli.serving.image_lists import image_paths
from prompt_serve.cli.serving.score_tables import COLUMNS
from tests.cli.conftest import Run
from tests.client.fake_service import VERSION, FakeService, numbered_image, problem


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 images in nested folders, two of them invalid, and files that are not images."""
    folder = tmp_path / "photos"
    for i in range(12):
        path = folder / f"day-{i // 6}" / f"{i:02}.{'PNG' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bad" if i in (3, 8) else numbered_image(i))
    for other in ("notes.txt", ".hidden.png", "day-0/._00.png"):
        (folder / other).write_bytes(b"no image")
    return folder


def read_table(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    return [
        {
            **{name: value or None for name, value in row.items()},
            "probability": float(row["probability"]) if row["probability"] else None,
            "unknown": {"True": True, "False": False, "": None}[row["unknown"]],
            "labels": json.loads(row["labels"]) if row["labels"] else None,
            "classes": json.loads(row["classes"]),
        }
        for row in rows
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_folder_becomes_a_table(
    suffix: str, service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tables" / f"scores{suffix}"
    service.behavior.unknown = {7}
    service.behavior.labels = {10: ["dog", "green grass"], 9: []}

    result = run("score", photos, "--task", "pets", "--out", out, "--chunk-size", 5)

    assert result.exit_code == 0
    assert f"{out}: 12 images, 12 rows in " in result.stdout
    assert "2 errors, 1 unknown." in result.stdout
    rows = read_table(out)
    assert [tuple(row) for row in rows] == [COLUMNS] * 12
    assert [Path(row["source"]).stem for row in rows] == [f"{i:02}" for i in range(12)]
    assert rows[5] == {
        "source": str(photos / "day-0" / "05.PNG"),
        "task": "pets",
        "version": "ab" * 32,
        "class_name": "5",
        "probability": 0.9,
        "unknown": False,
        "labels": None,
        "classes": [{"class_name": "5", "probability": 0.9}],
        "error_code": None,
        "error": None,
    }
    assert (rows[7]["unknown"], rows[7]["class_name"]) == (True, "7")
    assert [rows[n]["labels"] for n in (7, 10, 9)] == [None, ["dog", "green grass"], []]
    assert (rows[3]["unknown"], rows[3]["class_name"]) == (None, None)
    assert (rows[3]["error_code"], rows[3]["error"]) == ("image-invalid", "Not an image.")
    assert list(out.parent.iterdir()) == [out]


def test_several_tasks_files_and_lists(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    service.behavior.tasks["colors"] = b""
    first, second = photos / "day-0" / "00.png", photos / "day-1" / "06.png"
    odd = tmp_path / "odd.name"
    odd.write_bytes(numbered_image(77))
    listed = tmp_path / "list.txt"
    listed.write_text(f"{second}\n\n{first}\n")
    out = tmp_path / "scores.jsonl"

    tasks = ["--task", "pets", "--task", "colors", "--task", "pets"]
    assert run("score", first, listed, odd, *tasks, "-o", out).exit_code == 0

    rows = read_table(out)
    assert [(row["source"], row["task"]) for row in rows] == [
        (str(path), task) for path in (first, second, odd) for task in ("pets", "colors")
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_interrupted_run_is_resumed_where_it_ended(
    suffix: str, service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"scores{suffix}"
    arguments = ("score", photos, "--task", "pets", "--out", out)
    run(*arguments)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:7]) + lines[7][:10])  # as left by a killed run

    service.behavior.images_per_request.clear()
    result = run(*arguments, "--resume")

    assert result.exit_code == 0
    done = 6 if suffix == ".jsonl" else 5  # and a row with an error, which is retried
    assert f"Skipped {done} of 12 images that {out} already contains." in result.stdout
    assert f"Retrying 1 failed row of {out}." in result.stdout
    assert sum(service.behavior.images_per_request) == 12 - done
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    "name",
    ["bad.png", "with, comma.png", 'with "quotes".png', "line\nbreak.png", "emoji \N{CAT}.png"],
)
def test_failed_rows_are_retried_on_resume(
    suffix: str, name: str, service: FakeService, run: Run, tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / f"scores{suffix}"
    folder.mkdir()
    (folder / "a.png").write_bytes(numbered_image(1))
    (folder / name).write_bytes(b"bad")
    arguments = ("score", folder, "--task", "pets", "--out", out)
    run(*arguments)
    before = out.read_bytes()

    again = run(*arguments, "--resume")
    assert again.exit_code == 0  # the other image has a row
    assert sorted(out.read_bytes().splitlines()) == sorted(before.splitlines())

    (folder / name).write_bytes(numbered_image(2))
    assert run(*arguments, "--resume").exit_code == 0
    rows = read_table(out)
    assert {(row["source"], row["class_name"]) for row in rows} == {
        (str(folder / "a.png"), "1"),
        (str(folder / name), "2"),
    }
    assert len(rows) == 2
    assert "0 images, 0 rows" in run(*arguments, "--resume").stdout


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_failed_rows_of_other_images_and_tasks_stay(
    suffix: str, service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    service.behavior.tasks["colors"] = b""
    out = tmp_path / f"scores{suffix}"
    run("score", photos, "--task", "pets", "--task", "colors", "--out", out)
    before = read_table(out)

    run("score", photos / "day-0", "--task", "pets", "--out", out, "--resume")

    after = read_table(out)
    assert sorted(map(str, after)) == sorted(map(str, before))
    assert sum(row["error_code"] is not None for row in after) == 4
    moved = [(Path(row["source"]).stem, row["task"]) for row in after[-1:]]
    assert moved == [("03", "pets")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("selected", [("--task", "pets"), ("--task", "*")])
def test_versions_of_a_task_are_not_mixed_unless_told(
    suffix: str,
    selected: tuple[str, str],
    service: FakeService,
    run: Run,
    photos: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / f"scores{suffix}"
    run("score", photos / "day-0", *selected, "--out", out)
    before = out.read_bytes()
    service.behavior.version = "cd" * 32
    arguments = ("score", photos, *selected, "--out", out, "--resume")

    refused = run(*arguments)

    assert refused.exit_code == 2
    assert re.search("'pets' by version abab.*now has version cdcd.*--mix-versions", refused.stderr)
    assert out.read_bytes() == before

    assert run(*arguments, "--mix-versions").exit_code == 0
    assert {row["version"] for row in read_table(out)} == {None, "ab" * 32, "cd" * 32}


def test_a_new_version_of_another_task_does_not_matter(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    service.behavior.tasks["colors"] = b""
    out = tmp_path / "scores.csv"
    run("score", photos, "--task", "pets", "--out", out)
    service.behavior.version = "cd" * 32

    assert run("score", photos, "--task", "colors", "--out", out, "--resume").exit_code == 0


def test_resume_without_a_table_begins_one(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"

    assert run("score", photos, "--task", "pets", "-o", out, "--resume").exit_code == 0

    assert len(read_table(out)) == 12


def test_a_task_that_is_added_on_resume_adds_its_rows_only(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    service.behavior.tasks["colors"] = b""
    out = tmp_path / "scores.jsonl"
    run("score", photos, "--task", "pets", "-o", out)

    run("score", photos, "--task", "pets", "--task", "colors", "-o", out, "--resume")

    pairs = [(row["source"], row["task"]) for row in read_table(out)]
    assert len(pairs) == len(set(pairs)) == 24


def test_a_table_is_not_overwritten_by_accident(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("precious")
    arguments = ("score", photos, "--task", "pets", "-o", out)

    assert "Add --overwrite" in run(*arguments).stderr
    assert "was not written by this command" in run(*arguments, "--resume").stderr
    assert "No task" in run("score", photos, "--task", "pest", "-o", out, "--overwrite").stderr
    assert out.read_text() == "precious"

    assert run(*arguments, "--overwrite").exit_code == 0
    assert len(read_table(out)) == 12


def test_a_parquet_table_is_complete_or_absent(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "scores.parquet"
    failure = problem("request-invalid", 422, "No such thing.")
    service.behavior.is_refused = lambda images: failure

    result = run("score", photos, "--task", "pets", "-o", out)

    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "Error: No such thing.")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "scores.xlsx"), "expected the suffix .parquet, .csv or .jsonl"),
        (("-o", "scores.parquet", "--resume"), "cannot be resumed"),
        (("-o", "scores.csv", "/nowhere"), "No such file or folder:\n  - /nowhere"),
    ],
)
def test_invalid_arguments_are_reported_before_any_request(
    arguments: tuple[str, ...], message: str, service: FakeService, run: Run, photos: Path
) -> None:
    result = run("score", photos, "--task", "pets", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert service.behavior.paths == []


def test_a_folder_without_images_names_the_suffixes_searched_for(run: Run, tmp_path: Path) -> None:
    result = run("score", tmp_path, "--task", "pets", "-o", tmp_path / "scores.csv")

    assert result.exit_code == 2
    assert ".jpeg" in result.stderr


def test_nothing_but_errors_is_a_failure(service: FakeService, run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")

    result = run("score", tmp_path, "--task", "pets", "-o", tmp_path / "scores.csv")

    assert result.exit_code == 1
    assert "No image could be scored" in result.stderr
    assert len(read_table(tmp_path / "scores.csv")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_keeps_the_finished_rows(service: FakeService, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    command = [sys.executable, "-m", "prompt_serve", "score", str(photos), "--task", "pets"]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--chunk-size", "1", "--concurrency", "1"],
        stderr=subprocess.PIPE,
        text=True,
        # A background job ignores SIGINT, and its child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The first three images are answered, then the service hangs.
    service.behavior.delay_s = lambda: (
        60.0 if sum(service.behavior.images_per_request) >= 3 else 0.0
    )
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert stderr.endswith("Interrupted.\n")
    assert "Traceback" not in stderr
    assert len(read_table(out)) == 3


@pytest.mark.parametrize(
    ("encoding", "newline", "separator"),
    [
        ("utf-8", "\n", "/"),
        ("utf-8-sig", "\r\n", "\\"),
        ("utf-16", "\r\n", "\\"),
        ("utf-16-le", "\n", "/"),
        ("utf-8", " \r\n\r\n", "/"),
    ],
)
def test_a_list_of_any_encoding_is_read(
    service: FakeService, run: Run, tmp_path: Path, encoding: str, newline: str, separator: str
) -> None:
    paths = [tmp_path / "caf\u00e9" / name for name in ("a b.png", "猫.png", "🌹.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(numbered_image(number))
    names = [str(path).replace("/", separator) for path in paths]
    (tmp_path / "list.txt").write_bytes("".join(n + newline for n in names).encode(encoding))

    out = tmp_path / "scores.jsonl"
    result = run("score", tmp_path / "list.txt", "--task", "pets", "-o", out)

    assert result.exit_code == 0, result.output
    assert [row["source"] for row in read_table(out)] == [str(path) for path in paths]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp850", "mac-roman", "iso8859-15"])
def test_a_list_that_is_not_utf_8_is_one_line(
    service: FakeService, run: Run, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "café.png").write_bytes(numbered_image(1))
    (tmp_path / "list.txt").write_bytes(f"{tmp_path}/café.png\n".encode(encoding))

    out = tmp_path / "scores.jsonl"
    result = run("score", tmp_path / "list.txt", "--task", "pets", "-o", out)

    assert result.exit_code == 2
    assert "list.txt is not UTF-8 text (line 1)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("listed", [False, True])
def test_names_that_are_not_utf_8_are_kept_in_the_table(
    service: FakeService, run: Run, tmp_path: Path, suffix: str, listed: bool
) -> None:
    names = [b"caf\xe9.png", b"\xff.png", b"a\nb.png", "🌹.png".encode(), b"\x80\xe9.png"]
    names = [name for name in names if not (listed and b"\n" in name)]
    (tmp_path / "photos").mkdir()
    paths = sorted(str(tmp_path / "photos" / os.fsdecode(name)) for name in names)
    for number, path in enumerate(paths):
        Path(path).write_bytes(numbered_image(number))
    (tmp_path / "list.txt").write_bytes(b"\n".join(map(os.fsencode, paths)))
    source = tmp_path / "list.txt" if listed else tmp_path / "photos"

    out = tmp_path / f"scores{suffix}"
    result = run("score", source, "--task", "pets", "-o", out)

    assert result.exit_code == 0, result.output
    if suffix == ".csv":
        with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            sources = [row["source"] for row in csv.DictReader(file)]
    else:
        sources = [row["source"] for row in read_table(out)]
    escaped = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    assert sources == (escaped if suffix == ".parquet" else paths)
    if suffix != ".parquet":
        again = run("score", source, "--task", "pets", "-o", out, "--resume")
        assert f"Skipped {len(paths)} of {len(paths)} images" in again.stdout


def test_a_table_with_rows_of_many_classes_is_resumed(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    run("score", photos, "--task", "pets", "-o", out)
    many = json.dumps([{"class_name": "c" * 200, "probability": 0.0}] * 1000)
    with out.open("a", newline="") as file:
        csv.writer(file).writerow(["other.png", "pets", VERSION, "c", 0.5, False, "", many, "", ""])

    assert run("score", photos, "--task", "pets", "-o", out, "--resume").exit_code == 0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_disk_that_fills_up_keeps_the_rows_so_far(
    service: FakeService, run: Run, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(200):
        (tmp_path / "photos" / f"{number:03}.png").write_bytes(numbered_image(number))
    out = tmp_path / f"scores{suffix}"
    arguments = ["score", str(tmp_path / "photos"), "--task", "pets", "--out", str(out)]

    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", *arguments, "--no-progress"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (17_000, 17_000)),
    )

    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {out} cannot be written: File too large. It holds the rows so far; --resume "
        f"scores the others.\n"
    )
    assert out.stat().st_size > 16_000
    assert run(*arguments, "--resume").exit_code == 0
    rows = read_table(out)
    assert [Path(row["source"]).stem for row in rows] == [f"{i:03}" for i in range(200)]


def test_a_parquet_table_whose_folder_goes_away_is_one_line(
    service: FakeService, run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tables" / "scores.parquet"

    def remove_the_folder() -> float:
        shutil.rmtree(out.parent, ignore_errors=True)
        return 0.0

    service.behavior.delay_s = remove_the_folder
    result = run("score", photos, "--task", "pets", "--out", out, "--no-progress")

    assert result.exit_code == 1
    assert f"{out} cannot be written: No such file or directory. A Parquet table" in result.stderr


@pytest.mark.parametrize("suffix", [".CSV", ".Jsonl", ".PARQUET"])
def test_the_suffix_of_a_table_may_be_in_capitals(
    service: FakeService, run: Run, photos: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"scores{suffix}"

    assert run("score", photos, "--task", "pets", "--out", out).exit_code == 0

    assert len(read_table(out.rename(out.with_suffix(suffix.lower())))) == 12


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("https://a.org//x.png", "https://a.org//x.png"),
        ("./gone.png", "gone.png"),
        ("./here.png", "./here.png"),
        ("sub//here.png", "sub//here.png"),
        (r".\sub\here.png", "sub/here.png"),
        ("~/sub/here.png", "HOME/sub/here.png"),
    ],
)
def test_a_line_of_a_list_is_kept_where_it_names_a_file_or_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("here.png", "sub/here.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(f"{line}\n")

    assert image_paths(["list.txt"]) == [source.replace("HOME", str(tmp_path))]
