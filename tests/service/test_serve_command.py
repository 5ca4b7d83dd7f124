"""``prompt-serve serve``: starts the service, says where its page is, stops with it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from prompt_serve.cli.main import main
from tests.service.process import environment, free_port, stop

pytestmark = pytest.mark.serve

STOP_TIMEOUT_S = 60


@pytest.fixture
def started(tiny_bundle: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    own = environment(tmp_path / "home", tmp_path / "nowhere") | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prompt_serve", "serve", "--port", str(free_port()),
         "--bundle", str(tiny_bundle), "--workers", "1"],
        env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)
        assert process.stdout is not None
        process.stdout.close()


def test_the_address_of_the_page_is_printed_and_a_signal_stops_all(
    started: subprocess.Popen[str],
) -> None:
    assert started.stdout is not None
    ready = next((line for line in started.stdout if line.startswith("Ready: ")), "")
    found = re.match(r"Ready: (http://localhost:\d+/v1/ui) ", ready)
    assert found is not None, ready

    page = httpx.get(found[1], timeout=30)
    assert (page.status_code, "<title>" in page.text) == (200, True)
    os.kill(started.pid, signal.SIGTERM)

    started.wait(timeout=STOP_TIMEOUT_S)
    with pytest.raises(httpx.ConnectError):
        httpx.get(found[1], timeout=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bundle", "nowhere"], "no bundle in"),
        (["--host", "0.0.0.0"], "without any key"),
    ],
)
@pytest.mark.long
def test_what_cannot_start_ends_with_the_reason(
    tmp_path: Path, tiny_bundle: Path, options: list[str], message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", "serve", "--port", str(free_port()), *options],
        env=environment(tmp_path / "home", tiny_bundle),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )

    assert done.returncode in (1, 2)
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "0<=x<=65535"),
        (["--port", "http"], "not a whole number"),
        (["--workers", "0"], "x>=1"),
        (["--host"], "requires an argument"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_option_starts_nothing(options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["serve", *options])

    assert done.exit_code == 2
    assert message in done.stderr
