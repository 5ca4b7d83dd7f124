"""Workers that hang are found by their supervisor, also before they have ever shown a sign."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

SUPERVISOR = """
import subprocess, sys, time
from pathlib import Path
from prompt_serve.service.server import heartbeat

parent = Path(sys.argv[1])
heartbeat.watch_workers(parent, timeout_s={timeout_s}, start_timeout_s={start_timeout_s})
folder = Path(heartbeat.os.environ[heartbeat.FOLDER])
worker = [sys.executable, "-c", "import time; time.sleep(600)", "_bentoml_impl.worker.service"]
hung, beating, quiet = (subprocess.Popen(worker) for _ in range(3))
other = subprocess.Popen(worker[:-1])
(folder / str(quiet.pid)).touch()
print(hung.pid, beating.pid, quiet.pid, other.pid, flush=True)
while True:
    (folder / str(beating.pid)).touch()
    for child in (hung, quiet):
        child.poll()
    time.sleep(0.1)
"""


@contextmanager
def supervisor(
    folder: Path, timeout_s: float, start_timeout_s: float
) -> Iterator[list[psutil.Process]]:
    """Children of a started supervisor: hung at its start, beating, gone quiet, and no worker."""
    program = SUPERVISOR.format(timeout_s=timeout_s, start_timeout_s=start_timeout_s)
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        try:
            yield children
        finally:
            process.kill()
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeout_s", "start_timeout_s", "is_killed"),
    [(60.0, 1.0, (True, False, False, False)), (1.5, 60.0, (False, False, True, False))],
    ids=["hung at its start", "gone quiet"],
)
def test_only_the_worker_that_hangs_is_killed(
    timeout_s: float, start_timeout_s: float, is_killed: tuple[bool, ...], tmp_path: Path
) -> None:
    with supervisor(tmp_path, timeout_s, start_timeout_s) as children:
        assert len(children) == 4
        give_up = time.monotonic() + 60
        [expected] = [child for child, dies in zip(children, is_killed, strict=True) if dies]
        while expected.is_running() and time.monotonic() < give_up:
            time.sleep(0.05)

        assert tuple(not child.is_running() for child in children) == is_killed
