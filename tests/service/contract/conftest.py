"""A service of its own: generated requests change its tasks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.process import Served, service


@pytest.fixture(scope="package")
def contract_service(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A service without keys, and without the tasks of other tests."""
    with service(tmp_path_factory.mktemp("contract"), tiny_bundle, decode_threads="1") as running:
        yield running
