"""Caches: shown, cleared, and limited to the files that were used last."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.data.cache_folder import cache_limit
from prompt_serve.training.data.features import FeatureCache
from tests.cli.conftest import Run
from tests.drawings import draw_dataset

HALF = np.zeros((10, 1, 50), np.float16)  # 1000 bytes and a header


def test_training_fills_a_cache_that_is_shown_and_cleared(
    run: Run, caches: Path, tmp_path: Path
) -> None:
    empty = run("cache", "info")
    colors = draw_dataset(tmp_path / "colors", train=3, test=2)
    assert run("train", colors, "--method", "class-vectors", "--out",
               tmp_path / "c.safetensors").exit_code == 0  # fmt: skip

    shown = run("cache", "info", "--json")
    table = run("cache", "info")
    cleared = run("cache", "clear", "features")
    again = run("cache", "clear", "features")

    assert "no cache in" in empty.stderr
    [features] = [
        one for one in map(json.loads, shown.stdout.splitlines()) if one["cache"] == "features"
    ]
    assert features["files"] > 0
    assert features["folder"] == str(caches / "features")
    assert "features" in table.stdout
    assert cleared.exit_code == 0
    assert "removed" in cleared.stdout
    assert not (caches / "features").exists()
    assert again.exit_code == 2
    assert "There is no cache 'features'" in again.stderr


@pytest.mark.parametrize("kept", [1, 2, 3, 5, 8])
def test_the_files_used_last_are_kept_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: int
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE_LIMIT", str(kept * 1200))
    cache = FeatureCache(tmp_path)
    for index in range(8):
        cache.store(f"{index}", HALF)
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=_age, reverse=True)):
            os.utime(path, (10**9 - age, 10**9 - age))
        if (tmp_path / "0.npy").exists():
            assert cache.load("0", HALF.shape) is not None  # used again and again

    names = {path.stem for path in tmp_path.iterdir()}

    assert len(names) == kept
    assert "7" in names
    assert kept == 1 or "0" in names


def _age(path: Path) -> float:
    return path.stat().st_mtime


def test_one_large_file_is_kept_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE_LIMIT", "0")
    cache = FeatureCache(tmp_path)

    cache.store("old", HALF)
    os.utime(tmp_path / "old.npy", (1, 1))
    cache.store("new", np.zeros((1000, 1, 50), np.float16))

    assert [path.name for path in tmp_path.iterdir()] == ["new.npy"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0), ("1000", 1000), ("2KB", 2000), ("1.5 GB", 1_500_000_000), ("3t", 3 * 10**12)],
)
def test_a_limit_is_a_size(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE_LIMIT", value)

    assert cache_limit() == expected


@pytest.mark.parametrize("value", ["", "much", "-1", "1 PB", "GB"])
def test_what_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE_LIMIT", value)

    with pytest.raises(ConfigInvalid, match="expected a size such as 500MB"):
        cache_limit()
