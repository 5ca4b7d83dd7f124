"""The command, run in this process, and the stand-in service it talks to."""

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from prompt_serve.cli.main import main
from tests.client.fake_service import StandIn, running_standin

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run ``prompt-serve`` with some arguments; paths and numbers become text."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A running stand-in at the address that the commands use by default."""
    with running_standin() as service:
        monkeypatch.setenv("PROMPT_SERVE_URL", service.url)
        yield service
