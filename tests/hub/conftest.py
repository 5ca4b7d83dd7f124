"""The command and a stand-in of the Hub, which the Hub's own client talks to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run, caches, run
from tests.hub.stand_in import TOKEN, Hub, running_hub

__all__ = ["Run", "caches", "run"]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """An empty hub, a user of it who has a token, and a folder to work in."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server.repos, server.objects, server.requests = {}, {}, []
    server.failing, server.failing_upload, server.lfs_suffix = None, None, ".bin"
    server.damages = 0
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Read when the client was imported: the token of whoever runs the tests, and another protocol.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return server
