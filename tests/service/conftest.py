"""Fixtures of the service: a bundle with its real ONNX sessions, and a started process."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.service.engine import Engine
from tests.service.process import Served, service


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, cuda_device=None, threads=1, max_batch=8)


@pytest.fixture(scope="session")
def served(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all tests that leave it as they found it; each uses names of its own."""
    with service(
        tmp_path_factory.mktemp("served"), tiny_bundle, max_queue_images="128", decode_threads="2"
    ) as running:
        yield running


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client
