"""Outputs are checked before any work, and a result is never lost for want of a place."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.cli.output_file import save
from prompt_serve.prompts.prompt_file import read_prompt_file
from prompt_serve.training.data.features import FeatureCache
from tests.cli.conftest import Run
from tests.drawings import draw_dataset

# Commands whose inputs do not exist, up to the option that names an output. OK is a good one.
FILES = [
    ["train", "none", "--out"],
    ["train", "none", "--out", "OK", "--checkpoint"],
    ["train", "none", "--out", "OK", "--frontier"],
    ["evaluate", "none.safetensors", "none", "--report"],
    ["score", "none", "--task", "pets", "--out"],
    ["tasks", "download", "pets", "--out"],
    ["registry", "export", "--out"],
    ["report", "none", "--out"],
    ["reproduce", "few-shot", "--out", "OK", "--markdown"],
]
OPENED = [["train", "none", "--out", "OK", "--log"]]  # written in place: a device will do
FOLDERS = [
    ["export", "none", "--out"],
    ["train-many", "none", "--out"],
    ["protocol", "few-shot", "none", "--out"],
    ["reproduce", "few-shot", "--out"],
    ["data", "iconbench", "--offline", "--out"],
]


def in_a_file(folder: Path) -> Path:
    (folder / "file").write_text("old")
    return folder / "file" / "out.csv"


def deep_in_a_file(folder: Path) -> Path:
    (folder / "file").write_text("old")
    return folder / "file" / "a" / "b" / "out.csv"


def unwritable(folder: Path) -> Path:
    return Path("/proc/none/out.csv")


def too_long(folder: Path) -> Path:
    return folder / ("x" * 300 + ".csv")


def behind_a_broken_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link" / "out.csv"


def a_folder(folder: Path) -> Path:
    (folder / "folder.csv").mkdir()
    return folder / "folder.csv"


def a_device(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.csv")
    return folder / "pipe.csv"


def a_file(folder: Path) -> Path:
    (folder / "file.csv").write_text("old")
    return folder / "file.csv"


BAD = [in_a_file, deep_in_a_file, unwritable, too_long, behind_a_broken_link]
CASES = [
    *((command, place) for command in FILES + OPENED + FOLDERS for place in BAD),
    *((command, a_folder) for command in FILES + OPENED if "--frontier" not in command),
    *((command, a_device) for command in FILES if "score" not in command),
    *((command, a_file) for command in FOLDERS),
]


@pytest.mark.parametrize(
    ("command", "place"),
    CASES,
    ids=[f"{' '.join(command)} {place.__name__}" for command, place in CASES],
)
def test_an_output_that_cannot_be_written_is_an_error_before_any_work(
    run: Run, tmp_path: Path, command: list[str], place: Callable[[Path], Path]
) -> None:
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [str(tmp_path / "ok.tsv") if word == "OK" else word for word in command]

    result = run(*arguments, path)

    assert result.exit_code in (1, 2)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert f"{path} cannot be written: " in last or f"{path} is a folder; name a file" in last
    assert sorted(tmp_path.rglob("*")) == before


def full_disk(size: int) -> Callable[[], None]:
    """Return a function that limits the files of its process to some bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("command", [FILES[0], FILES[3], FILES[4], *OPENED, *FOLDERS[:2]])
def test_a_full_disk_is_noticed_before_any_work(tmp_path: Path, command: list[str]) -> None:
    arguments = [str(tmp_path / "ok.tsv") if word == "OK" else word for word in command]

    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", *arguments, str(tmp_path / "out.csv")],
        capture_output=True,
        text=True,
        preexec_fn=full_disk(1000),
    )

    assert done.returncode in (1, 2)
    assert "cannot be written: File too large." in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", ["data list", "methods", "--help", "score --help", "--version", "data --help"]
)
def test_standard_output_that_is_full_is_one_line(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prompt_serve", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Error: No space left on device."
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", [*BAD, a_folder])
def test_a_result_is_saved_in_a_temporary_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: Callable[[Path], Path],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = place(tmp_path)

    def write(to: Path) -> None:
        to.write_text("result")

    if place is too_long:  # this name fits nowhere
        with pytest.raises(OSError, match="too long"):
            save(path, write)
        return
    saved = save(path, write)

    assert saved.read_text() == "result"
    assert (saved.parent.parent, saved.name) == (tmp_path, path.name)
    assert f"It was saved as {saved}." in capsys.readouterr().err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("photos"), train=4)


def becomes_a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("in the way")


def becomes_a_broken_link(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("nowhere")


def gets_folders(folder: Path) -> None:
    for name in ("pets.safetensors", "pets-seed1.safetensors", "pets-seed2.safetensors"):
        (folder / name / "x").mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (becomes_a_file, ["--method", "class-vectors"]),
        (becomes_a_broken_link, []),
        (gets_folders, ["--method", "class-vectors"]),
        (becomes_a_file, ["--method", "coop", "--epochs", "1", "--views", "1", "--seeds", "1,2"]),
        (gets_folders, ["--method", "coop", "--epochs", "1", "--views", "1"]),
    ],
)
@pytest.mark.usefixtures("few_steps")
def test_what_was_learned_is_saved_when_the_place_for_it_is_gone(
    run: Run,
    photos: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    method: list[str],
) -> None:
    results, log = tmp_path / "results", tmp_path / "log.jsonl"
    results.mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    os.mkfifo(log)
    options = ["--backbone", str(tiny_folder), "--log", str(log), "--no-cache", *method]
    options += ["--out", str(results / "pets.safetensors")]

    def change_and_read() -> None:
        with log.open() as lines:
            change(results)
            lines.read()

    # The command opens its log when all is checked, and waits for a reader.
    reader = threading.Thread(target=change_and_read, daemon=True)
    reader.start()
    result = run("train", photos, *options)
    reader.join(timeout=300)
    stdout, stderr = result.stdout, result.stderr

    assert result.exit_code == 1, result.output
    assert "Traceback" not in stderr
    saved = sorted((tmp_path / "temporary").glob("prompt-serve-*/*"))
    names = {"pets-seed1.safetensors", "pets-seed2.safetensors"}
    assert {path.name for path in saved} == (names if "--seeds" in method else {"pets.safetensors"})
    for path in saved:
        assert len(read_prompt_file(path).class_names) == 4
        reason = "is a folder" if change is gets_folders else "cannot be written: "
        assert f"{results / path.name} {reason}" in stderr
        assert f"It was saved as {path}." in stderr
        assert str(path) in stdout  # the report names it


@pytest.mark.parametrize("method", ["class-vectors", "coop"])
def test_a_run_continues_without_a_log_that_cannot_be_written(
    run: Run, photos: Path, tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    few = ["--epochs", "2", "--views", "1"] if method == "coop" else []
    out = tmp_path / "pets.safetensors"

    result = run(
        "train", photos, "--backbone", tiny_folder, "--method", method, *few, "--out", out,
        "--log", "/dev/full", "--no-cache",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert result.stderr.count("Warning: /dev/full cannot be written: No space left") == 1
    assert read_prompt_file(out).method == method


@pytest.mark.parametrize("place", [*BAD, a_file])
def test_a_cache_that_cannot_be_written_is_one_warning(
    run: Run,
    photos: Path,
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[Path], Path],
) -> None:
    out, cache = tmp_path / "pets.safetensors", place(tmp_path)
    options = ["--backbone", tiny_folder, "--method", "class-vectors", "--cache", cache]

    result = run("train", photos, *options, "--out", out)

    assert result.exit_code == 0, result.output
    assert out.is_file()
    (record,) = caplog.records
    assert f"Warning: {cache} cannot be written: " in record.getMessage()


def test_a_cache_that_cannot_be_written_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = np.ones((2, 1, 3), dtype=np.float16)
    cache = FeatureCache(tmp_path / "cache")
    cache.store("first", features)
    (tmp_path / "cache" / "second.npy").mkdir()  # in the way
    cache.store("second", features)
    cache.store("third", features)

    loaded = cache.load("first", (2, 1, 3))
    assert loaded is not None
    assert (loaded == features).all()
    assert len(caplog.records) == 1
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "first.npy",
        "second.npy",
    ]
