"""The stand-in service, started anew for each test."""

from collections.abc import Iterator

import pytest

from prompt_serve.client import Client
from tests.client.standin import StandIn


@pytest.fixture
def service() -> Iterator[StandIn]:
    """A running stand-in that serves the task "pets"."""
    service = StandIn()
    service.behaviour.tasks["pets"] = b""
    service.start()
    yield service
    service.stop()


@pytest.fixture
def client(service: StandIn) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client
