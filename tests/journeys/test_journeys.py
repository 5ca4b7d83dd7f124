"""First contact of an engineer, a developer and an operator: scripts of what they type.

The scripts check what is printed and answered, and say at which step they failed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drawings import draw_dataset
from tests.required import program_missing
from tests.service.databases import new_database, postgres_programs, temporary_server
from tests.service.process import ROOT

pytestmark = [pytest.mark.serve, pytest.mark.slow]
TIMEOUT_S = 300  # of each; on two idle cores all three take less than a minute
SHOWN = 8_000
SKIPPED = "SKIPPED: "


@pytest.mark.long
def test_an_engineer_with_a_folder_of_images(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "colors", train=10, test=4)

    _run("engineer.sh", tmp_path)


def test_a_backend_developer_with_curl_and_a_generated_client(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "colors", test=2)

    _run("backend.sh", tmp_path)


@pytest.mark.long
def test_a_platform_engineer(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "colors", test=2)
    programs = postgres_programs()
    with contextlib.ExitStack() as stack:
        settings = {}
        if programs is not None:
            server = stack.enter_context(temporary_server(programs))
            settings["POSTGRES"] = new_database(server)

        _run("platform.sh", tmp_path, **settings)


def _run(script: str, folder: Path, **variables: str) -> None:
    """Run a script in ``folder``, with a fresh home; parts that it skips skip the test."""
    if shutil.which("curl") is None:
        program_missing("THE JOURNEYS ARE NOT RUN HERE: apt-get install curl")
    process = subprocess.Popen(
        ["bash", Path(__file__).parent / script],
        cwd=folder,
        env=_environment(folder / "home") | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of a script that ended
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed[-SHOWN:]
    skipped = [line for line in printed.splitlines() if line.startswith(SKIPPED)]
    if skipped:
        program_missing("; ".join(line.removeprefix(SKIPPED) for line in skipped))


def _environment(home: Path) -> dict[str, str]:
    """Return the variables of a user who installed the package and set nothing."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPT_SERVE_", "BENTOML"))}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
    }
