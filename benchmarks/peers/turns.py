"""Turns of the servers, A B C A B C, one server at a time; and their encoders without a server."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil

from benchmarks.http_throughput import Load
from benchmarks.peers.peer import Peer
from tests.service.process import ROOT

CLIENT = ROOT / "benchmarks" / "http_client.py"
REFERENCE = "open_clip fp32"
ENCODER_START_S = 300.0
# What a server that fails may raise: it does not start, does not answer, or does not stop.
FAILURES = (RuntimeError, OSError, subprocess.SubprocessError, httpx.HTTPError)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of a run.

    Args:
        rounds: turns per server.
        seconds: per turn.
        warm_up_s: of requests after every start that do not count.
        concurrency: requests in flight.
        pause_s: before every start, in which the CPU that others take is measured.
        answer_s: that the last answers may take.
    """

    rounds: int
    seconds: float
    warm_up_s: float
    concurrency: int
    pause_s: float = 1.0
    answer_s: float = 120.0


@dataclass(frozen=True)
class Turn:
    """What one start of a server gave.

    Args:
        load: of the client.
        start_s: until the server was ready.
        memory: bytes of all processes of the server, after the load.
        others: share of the machine's CPU in use just before the start.
    """

    load: Load
    start_s: float
    memory: int
    others: float


def in_turns(
    peers: Sequence[Peer], rounds: int, take: Callable[[Peer], T]
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Let every server have a turn in every round; one that fails has no more turns.

    Args:
        peers: the servers.
        rounds: number of rounds.
        take: gives a server its turn.

    Returns:
        The turns of every server that had all of them, and the reasons of the others.
    """
    turns: dict[str, list[T]] = {peer.label: [] for peer in peers}
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for peer in peers:
            if peer.label in failed:
                continue
            try:
                turns[peer.label].append(take(peer))
            except FAILURES as error:
                failed[peer.label] = reason(error) + (f" (turn {number})" if number > 1 else "")
                del turns[peer.label]
                print(f"{peer.label}: {failed[peer.label]}", file=sys.stderr)
    return turns, failed


def turn(peer: Peer, requests: Path, plan: Plan) -> Turn:
    """Start a server, warm it up, ask it, and stop it.

    Args:
        requests: folder of complete requests.

    Raises:
        RuntimeError: the server did not start or stop, or answered no request well.
        SubprocessError: the client failed, or waits for an answer for too long.
    """
    others = psutil.cpu_percent(interval=plan.pause_s) / 100
    with peer.start() as server:
        load(server.port, requests, plan, plan.warm_up_s)
        found = load(server.port, requests, plan, plan.seconds)
        memory = server.memory
    print(f"{peer.label}: {found.images_per_s:.1f} images/s, started in {server.start_s:.1f} s, "
          f"{memory / 2**20:.0f} MiB", file=sys.stderr)  # fmt: skip
    return Turn(found, server.start_s, memory, others)


def write_requests(peer: Peer, photographs: Path, folder: Path) -> Path:
    """Write the complete request of every photograph; return their folder."""
    if not folder.is_dir():
        folder.mkdir()
        for path in sorted(photographs.iterdir()):
            (folder / path.with_suffix(".http").name).write_bytes(peer.request(path.read_bytes()))
    return folder


def load(port: int, requests: Path, plan: Plan, seconds: float) -> Load:
    """Ask one server for some seconds, from a process of its own.

    Raises:
        RuntimeError: no answer has status 200.
        SubprocessError: the client failed, or waits for an answer for too long.
    """
    files = map(str, sorted(requests.iterdir()))
    numbers = ["--port", port, "--seconds", seconds, "--concurrency", plan.concurrency]
    command = [sys.executable, str(CLIENT), *map(str, numbers), "--request", *files]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=seconds + plan.answer_s
    )
    answer = json.loads(done.stdout)
    statuses = Counter(answer["statuses"])
    if not statuses["200"]:
        raise RuntimeError(f"no answer has status 200: {dict(statuses)}")
    latencies_ms = [1000 * s for s in answer["latencies_s"]]
    return Load(answer["seconds"], statuses, latencies_ms, answer["cpu_s"])


def encoders_alone(
    peers: Sequence[Peer], photographs: Path, seconds: float
) -> tuple[dict[str, tuple[float, float | None]], dict[str, str]]:
    """Measure every encoder without a server.

    Returns:
        Images/s and the smallest cosine to open_clip's features of eight photographs in float32,
        by encoder; and the reasons of those that did not run, by server.
    """
    answers: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for peer in peers:
        if peer.encoder in answers:
            continue  # servers of one encoder share its figure
        command = [*peer.alone, str(photographs), str(seconds)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=peer.variables,
                capture_output=True,
                text=True,
                check=True,
                timeout=seconds + ENCODER_START_S,
            )
        except FAILURES as error:
            failed[peer.label] = reason(error)
            continue
        answers[peer.encoder] = found = json.loads(done.stdout.splitlines()[-1])
        print(f"{peer.encoder} alone: {found['images_per_s']:.1f} images/s", file=sys.stderr)
    expected = answers.get(REFERENCE, {}).get("features")
    return {
        encoder: (found["images_per_s"], smallest_cosine(found["features"], expected))
        for encoder, found in answers.items()
    }, failed


def reason(error: Exception) -> str:
    """Return one line for the table."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:g} s"
    text = (error.stderr if isinstance(error, subprocess.CalledProcessError) else "") or str(error)
    lines = str(text).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]


def smallest_cosine(
    features: list[list[float]], expected: list[list[float]] | None
) -> float | None:
    if expected is None:
        return None
    return float((np.array(features) * np.array(expected)).sum(axis=1).min())
