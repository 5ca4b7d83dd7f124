"""The fake service, started anew for each test."""

from collections.abc import Iterator

import pytest

from prompt_serve.client import Client
from tests.client.fake_service import FakeService, running_fake_service


@pytest.fixture
def service() -> Iterator[FakeService]:
    with running_fake_service() as service:
        yield service


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client
