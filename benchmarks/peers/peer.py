"""A server to measure: how it starts, which request it takes, and its encoder alone."""

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import environment
from benchmarks.peers.server_process import RunningServer, running
from tests.service.process import ROOT

BOUNDARY = "photograph-of-the-benchmark"


@dataclass(frozen=True)
class Work:
    """Folders of the benchmark."""

    build: Path  # environments and logs
    weights: Path
    photographs: Path
    bundles: Path


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server in one precision.

    Args:
        name: of the server.
        precision: of its image encoder.
        encoder: names the encoder; those that share one have one figure alone.
        alone: command that prints the rate of the encoder alone.
        variables: environment of ``alone`` and of the server.
        start: runs the server until the block ends.
        request: makes the request of one photograph.
        versions: of its packages.
    """

    name: str
    precision: str
    encoder: str
    alone: Sequence[str]
    variables: dict[str, str]
    start: Callable[[], AbstractContextManager[RunningServer]]
    request: Callable[[bytes], bytes]
    versions: str

    @property
    def label(self) -> str:
        """Name in tables and charts."""
        return f"{self.name}, {self.precision}"


def open_clip_peer(
    work: Work,
    name: str,
    requirements: list[str],
    *,
    precision: str,
    command: Callable[[int], Sequence[str]],
    ready: str,
    request: Callable[[bytes], bytes],
    package: str,
) -> Peer:
    """Describe a server of ``servers.open_clip_encoder``; its environment is made if need be.

    Args:
        name: of the server, and of its folder in lower case.
        requirements: packages of its environment.
        command: the server's command for a port, without the interpreter.
        ready: path that answers 200 once the server is ready.
        package: whose version is reported beside those of open_clip and torch.
    """
    python = environment(work.build / name.lower(), requirements)
    variables = {**clean_variables(work), "PEER_PRECISION": precision}
    encoder = "benchmarks.peers.servers.open_clip_encoder"
    return Peer(
        name=name,
        precision=precision,
        encoder=f"open_clip {precision}",
        alone=[str(python), "-m", encoder],
        variables=variables,
        start=lambda: running(
            lambda port: [str(python), *command(port)],
            variables,
            work.build / f"{name.lower()}-{precision}.log",
            ready,
        ),
        request=request,
        versions=versions(python, package, "open_clip_torch", "torch"),
    )


def clean_variables(work: Work) -> dict[str, str]:
    """Return the environment of a peer: no hub, and as many threads as it takes by default."""
    dropped = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("BENTOML")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PEER_WEIGHTS": str(work.weights),
        "BENTOML_HOME": str(work.build / "bentoml-home"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def versions(python: Path, *packages: str) -> str:
    """Return the names and versions of packages in an environment."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    command = [str(python), "-c", code, *packages]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return ", ".join(map(" ".join, zip(packages, found, strict=True)))


def post(path: str, content_type: str, body: bytes) -> bytes:
    """Return a complete request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post_file(path: str, field: str, data: bytes) -> bytes:
    """Return a request with one photograph in a form."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(path, f"multipart/form-data; boundary={BOUNDARY}", body)
