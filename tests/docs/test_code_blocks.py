"""The commands and programs of README and tutorial run, and print what the pages show."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import STARTS_SERVICE, Block, blocks_of, missing_lines
from tests.service.process import ROOT, Served, free_port, stop, wait_until_ready

pytestmark = [pytest.mark.serve, pytest.mark.slow]

README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
SERVE = "bentoml serve prompt_serve.service.bento:PromptServe\n"
PAGES_URL = "http://localhost:3000"
FIRST_START_TIMEOUT_S = 300  # it exports the embedded backbone
TIMEOUT_S = 300
# Blocks that need the network, hours, or another environment; a page says why above each.
NOT_RUN = {
    README: ["pip install 'prompt-serve[serve,train]'", "pip install 'prompt-serve[train", "make"],
    TUTORIAL: ["pip install 'prompt-serve[serve,train]'"],
}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A fresh home, feature cache and working folder."""
    with tempfile.TemporaryDirectory(prefix="prompt-serve-docs-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """What a user's shell has after the installation, and nothing of this process's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPT_SERVE_", "BENTOML"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "default",
        # Training on a busy machine is far slower with a thread per core than with one.
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PROMPT_SERVE_HOME": str(home / "home"),
        "PROMPT_SERVE_CACHE": str(home / "cache"),
    }


@pytest.fixture(scope="module")
def served(home: Path, environment: dict[str, str]) -> Iterator[Served]:
    """The service, started by the command of the pages on another port."""
    port = free_port()
    log = home / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*SERVE.split(), "--port", str(port)],
            cwd=home,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Served(f"http://127.0.0.1:{port}", home, log, process)
    try:
        wait_until_ready(running, FIRST_START_TIMEOUT_S)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            stop(process)


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: str(page.name))
def test_blocks_print_what_the_page_shows(
    page: Path, home: Path, environment: dict[str, str], served: Served
) -> None:
    folder = home / page.stem
    folder.mkdir()
    (folder / "prompt_serve").symlink_to(ROOT / "prompt_serve")
    for block in blocks_of(page):
        if not block.runs:
            continue
        if block.comment == STARTS_SERVICE:
            assert block.text == SERVE, "the service of this test is started by another command"
            continue
        printed = _run(block, folder, environment, served.url)

        missing = missing_lines(block.output, printed)
        assert not missing, f"{page.name}:{block.line} shows {missing}; printed was:\n{printed}"


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: str(page.name))
def test_blocks_that_are_not_run_are_known(page: Path) -> None:
    skipped = [block for block in blocks_of(page) if not block.runs]

    assert len(skipped) == len(NOT_RUN[page])
    for block, start in zip(skipped, NOT_RUN[page], strict=True):
        assert block.text.startswith(start)


def _run(block: Block, folder: Path, environment: dict[str, str], url: str) -> str:
    """Run a block as the user would, against ``url``; return what it printed."""
    text = block.text.replace(PAGES_URL, url)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euc", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PROMPT_SERVE_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"line {block.line}: {block.text}\n{done.stdout}{done.stderr}"
    return done.stdout
