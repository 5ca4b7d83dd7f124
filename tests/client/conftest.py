"""The stand-in service, started anew for each test."""

from collections.abc import Iterator

import pytest

from prompt_serve.client import Client
from tests.client.fake_service import StandIn, running_standin


@pytest.fixture
def service() -> Iterator[StandIn]:
    with running_standin() as service:
        yield service


@pytest.fixture
def client(service: StandIn) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client
