"""The four commands that read folders of images: the same images, and one line on the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import Run
from tests.client.fake_service import FakeService
from tests.drawings import draw_dataset, draw_image

COMMANDS = ("train", "evaluate", "score", "classify")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_dataset(tmp_path / "photos", all=3)


class Commands:
    """Runs each command on a folder of images."""

    def __init__(self, run: Run, tmp_path: Path, tiny_folder: Path) -> None:
        self._run, self._folder, self._backbone = run, tmp_path, tiny_folder

    def __call__(self, command: str, photos: Path, *options: object) -> Result:
        backbone = ("--backbone", self._backbone, "--no-cache")
        prompt, table = self._folder / "out.safetensors", self._folder / "scores.jsonl"
        zero_shot = ("--method", "zero-shot", "--out", prompt, *backbone)
        match command:
            case "train":
                return self._run("train", photos, *zero_shot, *options)
            case "evaluate":
                plain = draw_dataset(self._folder / "plain", all=1)
                assert self._run("train", plain, *zero_shot).exit_code == 0
                return self._run("evaluate", prompt, photos, *backbone, *options)
            case "score":
                return self._run("score", photos, "--task", "pets", "--out", table, *options)
            case _:
                return self._run("classify", photos, "--task", "pets", *options)


@pytest.fixture
def on(run: Run, tmp_path: Path, tiny_folder: Path, service: FakeService) -> Commands:
    return Commands(run, tmp_path, tiny_folder)


def images_of(command: str, result: Result) -> int:
    """Return the number of images that a command reports."""
    found: dict[str, Any] = {
        "train": lambda: int(result.stdout.split("images: ")[1].split()[0]),
        "evaluate": lambda: int(result.stdout.split("images")[1].split()[0]),
        "score": lambda: int(result.stdout.split(": ")[1].split()[0]),
        "classify": lambda: result.stdout.count("  pets\n"),
    }
    return int(found[command]())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("left_out", "line"),
    [
        (("red/a.mp4", "red/b.MP4", "blue/c.txt"), "3 files ignored: 2 .mp4, 1 .txt."),
        (("red/._00.png", "red/Thumbs.db"), "2 files ignored: 2 hidden."),
        (("red/.thumbnails/0.png", "@eaDir/0.png"), "2 folders ignored: 2 hidden."),
        (("__MACOSX/red/1.png", "red/README"), "1 file ignored: 1 without suffix; 1 folder"),
        ((".ipynb_checkpoints/a.png", "#recycle/x.png"), "2 folders ignored: 2 hidden."),
    ],
)
def test_what_is_left_out_is_told_in_one_line(
    on: Commands, photos: Path, command: str, left_out: tuple[str, ...], line: str
) -> None:
    for name in left_out:
        draw_image(photos / "x.png", (200, 0, 0), 1)
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / "x.png").rename(photos / name)

    result = on(command, photos)

    assert result.exit_code == 0, result.output
    assert images_of(command, result) == 12
    assert result.output.count(f"Note: {line}") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_loop_of_links_ends(on: Commands, photos: Path, command: str) -> None:
    (photos / "red" / "again").symlink_to(photos)

    result = on(command, photos)

    assert images_of(command, result) == 12
    assert "Note: 1 folder ignored: 1 visited before." in result.output


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<html>", b"\x89PNG\r\n\x1a\n", b"GIF"])
def test_bad_images_are_errors_or_skipped(
    on: Commands, photos: Path, command: str, content: bytes
) -> None:
    bad = [photos / name for name in ("red/bad.jpg", "blue/bad.png")]
    for path in bad:
        path.write_bytes(content)

    refused = on(command, photos)
    skipped = on(command, photos, "--on-bad-image", "skip")

    assert refused.exit_code == 2
    assert all(f"{path}: " in refused.stderr for path in bad)
    assert skipped.exit_code == 0, skipped.output
    assert images_of(command, skipped) == 12
    assert skipped.output.count("Note: 2 unreadable images skipped:\n") == 1
    assert all(f"  {path}: " in skipped.output for path in bad)


def test_many_skipped_images_are_counted_and_the_first_are_listed(
    on: Commands, photos: Path
) -> None:
    for number in range(30):
        (photos / "red" / f"bad{number:02}.png").write_bytes(b"bad")

    result = on("train", photos, "--on-bad-image", "skip")

    assert "Note: 30 unreadable images skipped:\n" in result.stdout
    assert result.stdout.count("/bad") == 20
    assert "... and 10 more like these" in result.stdout


def test_a_class_of_bad_images_is_still_an_error(on: Commands, photos: Path) -> None:
    for path in (photos / "red").iterdir():
        path.write_bytes(b"bad")

    result = on("train", photos, "--on-bad-image", "skip")

    assert result.exit_code == 2
    assert "class 'red' has no training image" in result.stderr
    assert "3 unreadable images skipped" in result.stderr


@pytest.mark.parametrize(
    "names",
    [("Cat", "cat"), ("polar_bear", "polar bear"), ("A  b", "a b"), ("é", "É"), ("x&amp;y", "x&y")],
)
def test_names_with_the_same_tokens_are_told(
    on: Commands, photos: Path, names: tuple[str, str]
) -> None:
    for name, folder in zip(names, ("red", "blue"), strict=True):
        (photos / folder).rename(photos / name)

    result = on("train", photos)

    first, second = (name for name in sorted(names))
    assert f"cannot tell apart: {first!r} = {second!r}. Rename or merge" in result.stdout


def test_the_size_limit_of_the_service_holds_for_training(
    on: Commands, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_MAX_IMAGE_PIXELS", "1919")  # the drawings have 1,920

    result = on("train", photos)

    assert result.exit_code == 2
    assert "40 = 1,920 pixels; at most 1,919 are accepted" in result.stderr
    assert "raise PROMPT_SERVE_MAX_IMAGE_PIXELS" in result.stderr
    monkeypatch.setenv("PROMPT_SERVE_MAX_IMAGE_PIXELS", "1920")
    assert on("train", photos).exit_code == 0


def test_classify_takes_files_and_folders_in_json(
    run: Run, service: FakeService, photos: Path
) -> None:
    single = photos / "red" / "00.png"  # its name is also that of an image in the folder

    result = run("classify", single, photos / "blue", "--task", "pets", "--json")

    assert result.exit_code == 0, result.output
    sources = [json.loads(line)["source"] for line in result.stdout.splitlines()]
    assert sources == [str(path) for path in (single, *sorted((photos / "blue").glob("*.png")))]


@pytest.mark.parametrize("name", ["a.heic", "a.HEIC", "a.heif", "a.hif", "a.Heic"])
def test_score_sends_heic_for_the_service_to_decode(
    on: Commands, tmp_path: Path, name: str
) -> None:
    photos = draw_dataset(tmp_path / "some", all=1)
    (photos / name).write_bytes(b"bad")

    result = on("score", photos)

    assert "5 images, 5 rows" in result.stdout
    assert "1 error" in result.stdout
    assert "ignored" not in result.output


def test_a_folder_without_images_is_one_line(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    result = run("classify", tmp_path, "--task", "pets")

    assert result.exit_code != 0
    assert f"No images in {tmp_path}" in result.stderr
