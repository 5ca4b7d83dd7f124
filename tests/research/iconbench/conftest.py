"""The small benchmark, its registry and a finished build of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prompt_serve.research.iconbench.build import BuiltBenchmark, build_iconbench
from prompt_serve.research.iconbench.packages import Package, Pins
from tests.research.iconbench.small import (
    Registry,
    running_registry,
    small_packages,
    small_pins,
)


@pytest.fixture(scope="session")
def packages() -> dict[Package, bytes]:
    return small_packages()


@pytest.fixture(scope="session")
def pins(packages: dict[Package, bytes]) -> Pins:
    return small_pins(packages)


@pytest.fixture
def registry(packages: dict[Package, bytes]) -> Iterator[Registry]:
    with running_registry(packages) as running:
        yield running


@pytest.fixture(scope="session")
def downloads(packages: dict[Package, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished fetch leaves it."""
    folder = tmp_path_factory.mktemp("downloads")
    for package, data in packages.items():
        (folder / package.file_name).write_bytes(data)
    return folder


@pytest.fixture
def built(tmp_path: Path, downloads: Path, pins: Pins) -> BuiltBenchmark:
    return build_iconbench(
        tmp_path / "icon", downloads=downloads, offline=True, workers=1, pins=pins
    )
