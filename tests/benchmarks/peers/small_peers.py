"""Servers of ``small_server`` as peers of the benchmark."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.peers.peer import Peer, post
from benchmarks.peers.server_process import RunningServer, running

SERVER = Path(__file__).with_name("small_server.py")


def command(kind: str) -> Callable[[int], Sequence[str]]:
    return lambda port: [sys.executable, "-I", "-S", str(SERVER), kind, str(port)]


def start(
    kind: str, log: Path, start_timeout_s: float = 30.0
) -> AbstractContextManager[RunningServer]:
    return running(command(kind), dict(os.environ), log, "/ready", start_timeout_s)


def small_peer(
    folder: Path,
    kind: str,
    *,
    name: str | None = None,
    encoder: str = "open_clip fp32",
    alone: Sequence[str] = (),
    start_timeout_s: float = 30.0,
) -> Peer:
    """Describe a server.

    Args:
        folder: of its log.
        kind: of ``small_server``.
        name: of the server; its kind by default.
        alone: command of its encoder.
    """
    return Peer(
        name=name or kind,
        precision="fp32",
        encoder=encoder,
        alone=alone,
        variables=dict(os.environ),
        start=lambda: start(kind, folder / f"{kind}.log", start_timeout_s),
        request=lambda data: post("/classify", "image/jpeg", data),
        versions="small 1",
    )
