"""``prompt-serve keygen``, ``sign``, ``verify`` and ``train --sign``."""

import json
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra signing is not installed")

from prompt_serve.prompts.prompt_file import read_prompt_file, version_of
from prompt_serve.signing.signature import remove_signature
from tests.cli.conftest import Run
from tests.drawings import draw_dataset
from tests.golden import GOLDEN, path_of


@pytest.fixture
def key(tmp_path: Path, run: Run) -> Path:
    path = tmp_path / "release.key"
    assert run("keygen", path).exit_code == 0
    return path


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("release.key.pub")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_is_signed_in_place_and_verified(
    name: str, key: Path, public: Path, tmp_path: Path, run: Run
) -> None:
    before = path_of(name).read_bytes()
    file = tmp_path / "task.safetensors"
    file.write_bytes(before)
    refused = run("verify", file, "--trusted", public)
    assert refused.exit_code == 1
    assert "not signed" in refused.output

    signed = run("sign", file, "--key", key)
    assert signed.exit_code == 0, signed.output
    assert version_of(file.read_bytes()) in signed.output
    assert remove_signature(file.read_bytes()) == before
    verified = run("verify", file, "--trusted", public)
    assert verified.exit_code == 0
    assert "signed by release (SHA256:" in verified.output


def test_a_file_is_signed_for_another_name(
    key: Path, public: Path, tmp_path: Path, run: Run
) -> None:
    file, out = path_of("low_rank"), tmp_path / "other.safetensors"
    before = file.read_bytes()
    assert run("sign", file, "--key", key, "--name", "other", "--out", out).exit_code == 0

    assert file.read_bytes() == before
    assert read_prompt_file(out).name == "other"
    assert run("verify", out, "--trusted", public).exit_code == 0


def test_many_files_are_verified_and_each_has_its_line(
    key: Path, public: Path, tmp_path: Path, run: Run
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("good", "unsigned", "changed", "text")]
    for file in files:
        file.write_bytes(path_of("low_rank").read_bytes())
    for file in (files[0], files[2]):
        run("sign", file, "--key", key)
    files[2].write_bytes(files[2].read_bytes()[:-1] + b"?")
    files[3].write_text("text")

    result = run("verify", *files, "--trusted", public, "--json")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [line.get("code") for line in lines] == [
        None,
        "signature-invalid",
        "signature-invalid",
        "prompt-file-invalid",
    ]
    assert lines[0]["name"] == "release"


@pytest.mark.parametrize("options", [("--out", "x"), ("--name", "x")])
def test_options_of_one_file_are_refused_for_several(
    options: tuple[str, str], key: Path, tmp_path: Path, run: Run
) -> None:
    result = run("sign", path_of("low_rank"), path_of("low_rank"), "--key", key, *options)

    assert result.exit_code == 2
    assert "single FILE" in result.output


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("photos"), train=4, test=2)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--method", "class-vectors"), ["t"]),
        (("--method", "zero-shot"), ["t"]),
        (("--method", "dip", "--epochs", "2", "--views", "1"), ["t"]),
        (
            ("--method", "dip", "--epochs", "2", "--views", "1", "--seeds", "1,2"),
            ["t-seed1", "t-seed2"],
        ),
        (("--multi-label",), ["t"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_train_writes_is_signed(
    options: tuple[str, ...],
    written: list[str],
    photos: Path,
    tiny_folder: Path,
    key: Path,
    public: Path,
    tmp_path: Path,
    run: Run,
) -> None:
    images = photos
    if "--multi-label" in options:
        images = tmp_path / "labels.csv"
        rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*/*.png"))]
        images.write_text("path,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "t.safetensors"

    result = run(
        "train", images, "--backbone", tiny_folder, "--out", out, "--sign", key, "--quiet", *options
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    for name in written:
        verified = run("verify", tmp_path / f"{name}.safetensors", "--trusted", public)
        assert verified.exit_code == 0, verified.output
        assert f"task {name!r}" in verified.output


@pytest.mark.parametrize("content", [None, "no key"])
def test_a_wrong_key_is_noticed_before_training(
    content: str | None, photos: Path, tiny_folder: Path, tmp_path: Path, run: Run
) -> None:
    key, out = tmp_path / "wrong.key", tmp_path / "t.safetensors"
    if content is not None:
        key.write_text(content)

    result = run("train", photos, "--backbone", tiny_folder, "--out", out, "--sign", key)

    assert result.exit_code == 2
    assert "wrong.key" in result.output
    assert not out.exists()
