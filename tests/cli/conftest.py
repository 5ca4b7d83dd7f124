"""The command, run in this process, and the fake service it calls."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prompt_serve.cli.main import main
from tests.client.fake_service import FakeService, running_fake_service

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run ``prompt-serve`` with some arguments; paths and numbers become text."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Cache folder of this test's commands."""
    monkeypatch.setenv("PROMPT_SERVE_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A running fake service at the default address of the commands."""
    with running_fake_service() as service:
        monkeypatch.setenv("PROMPT_SERVE_URL", service.url)
        yield service
