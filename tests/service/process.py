"""A started service process, for tests over HTTP."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
REFUSAL_TIMEOUT_S = 90.0
_PORTS = (12_000, 32_000)


@dataclass(frozen=True)
class Served:
    """URL, folder, log and process of a started service."""

    url: str
    home: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def service(
    home: Path,
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    target: str = ".",
    checkout: str = str(ROOT),
    **settings: str,
) -> Iterator[Served]:
    """Run ``bentoml serve`` in the checkout until it is ready and the block ends."""
    with starting_service(
        home, bundle, host=host, target=target, checkout=checkout, **settings
    ) as served:
        wait_until_ready(served)
        yield served


@contextlib.contextmanager
def starting_service(
    home: Path,
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    target: str = ".",
    checkout: str = str(ROOT),
    **settings: str,
) -> Iterator[Served]:
    """Run ``bentoml serve``, which may not be ready yet; it is stopped as by Ctrl-C at the end."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = home / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", target, "--host", host, "--port", str(port)],
            cwd=checkout,
            env=environment(home, bundle, **settings) | {"PYTHONPATH": _path(checkout)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    served = Served(f"http://127.0.0.1:{port}", home, log, process)
    try:
        yield served
    finally:
        stop(process)


def _path(checkout: str) -> str:
    return os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])


def refused_start(settings: dict[str, str], *options: str) -> str:
    """Run a ``bentoml serve`` that must refuse to start; returns its output.

    Args:
        settings: the environment.
        options: further options of the command.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", "--port", str(free_port()), *options],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=REFUSAL_TIMEOUT_S)
    finally:
        stop(process)
    assert process.returncode == 1
    assert "Traceback" not in output
    return output


def environment(home: Path, bundle: Path, **settings: str) -> dict[str, str]:
    """Return this process's environment with exactly these settings of the service."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPT_SERVE_", "BENTOML"))}
    return {
        **kept,
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        "PROMPT_SERVE_ENV_FILE": "",  # a developer's own .env in the checkout is not read
        "PROMPT_SERVE_ENGINE": "onnxruntime",  # no measurement at every start
        "PROMPT_SERVE_HOME": str(home),
        "PROMPT_SERVE_BUNDLE": str(bundle),
        **{f"PROMPT_SERVE_{name.upper()}": value for name, value in settings.items()},
    }


def wait_until_ready(served: Served, timeout_s: float = START_TIMEOUT_S) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up and served.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{served.url}/readyz", timeout=10).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"The service did not start:\n{served.log.read_text()[-4000:]}")


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop as by Ctrl-C; a service that does not stop is killed and fails the test."""
    if process.poll() is not None:
        return
    everything = [process, *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        raise


def free_port() -> int:
    """Return a port below those that systems give to clients: none of the connections that other
    test processes open meanwhile takes it before the service, or while that is restarted."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)  # no seed that two processes share
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
