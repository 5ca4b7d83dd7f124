"""The service and other servers of CLIP, with the same weights and photographs, in turns.

    python -m benchmarks.peers                       all
    python -m benchmarks.peers --only own litserve   some
    python -m benchmarks.peers --write               and into docs/performance.md

Each peer has an environment of its own in build/peers, made at the first run from the package
index; nothing else is downloaded. All servers run at once, and one at a time is asked, each in
every round. The client is a process of its own, whose CPU is counted apart.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.http_throughput import N_IMAGES, Load, write_images
from benchmarks.peers import bentoml, fastapi, infinity, litserve, own
from benchmarks.peers.environments import NotInstalled
from benchmarks.peers.peaks import product_peak
from benchmarks.peers.peer import Peer, Work
from benchmarks.peers.report import Measured, chart, section, table
from benchmarks.peers.weights import write_weights
from drills.chaos import write_table
from tests.service.process import ROOT

PEERS: dict[str, Callable[[Work], list[Peer]]] = {
    "own": own.peers,
    "fastapi": fastapi.peers,
    "litserve": litserve.peers,
    "bentoml": bentoml.peers,
    "infinity": infinity.peers,
}
PAGE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "results" / "peers.svg"
CLIENT = ROOT / "benchmarks" / "http_client.py"
REFERENCE = "open_clip fp32"
WARM_UP_S = 2.0
FORM_OF_PHOTOGRAPHS = (500, 375)


def main() -> None:
    options = parse()
    build: Path = options.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        photographs, described = photographs_of(options.photographs, Path(folder) / "images")
        work = Work(build, write_weights(build / "weights"), photographs, options.cache)
        peers, missing = described_peers(work, options.only)
        if options.prepare:
            print(*(peer.label for peer in peers), *missing.items(), sep="\n")
            return
        measured, failed, idle = measure(peers, work, options)
    missing |= failed
    print(table(measured, missing))
    if options.write:
        CHART.write_text(chart(measured), encoding="utf-8")
        text = section(
            measured,
            missing,
            concurrency=options.concurrency,
            seconds=options.seconds,
            rounds=options.rounds,
            photographs=described,
            idle=idle,
            peaks={one.peer.precision: one.peak for one in measured},
        )
        write_table("peers", f"\n{text}\n", PAGE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PEERS, default=list(PEERS), help="servers to measure")
    add("--concurrency", type=int, default=16, help="requests in flight [default: %(default)s]")
    add("--seconds", type=float, default=8, help="seconds per turn [default: %(default)s]")
    add("--rounds", type=int, default=2, help="turns per server [default: %(default)s]")
    photographs = ROOT.parent / "shared" / "data" / "flowers"
    add("--photographs", type=Path, default=photographs, help="folder of JPEGs; if missing: drawn")
    add("--build", type=Path, default=ROOT / "build" / "peers", help="folder of the environments")
    add("--cache", type=Path, default=Path("~/.cache/prompt-serve/benchmarks").expanduser(),
        help="folder of exported bundles [default: %(default)s]")  # fmt: skip
    add("--prepare", action="store_true", help="make environments and weights, and stop")
    add("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    return parser.parse_args()


def photographs_of(source: Path, folder: Path) -> tuple[Path, str]:
    """Return a folder of 64 photographs, evenly taken from the source, and what they are."""
    found = sorted(source.rglob("*.jpg")) if source.is_dir() else []
    if len(found) < N_IMAGES:
        return write_images(folder, FORM_OF_PHOTOGRAPHS), f"{N_IMAGES} drawn JPEGs of 500 x 375"
    folder.mkdir()
    chosen = [found[n * len(found) // N_IMAGES] for n in range(N_IMAGES)]
    for number, path in enumerate(chosen):
        (folder / f"{number:03}.jpg").write_bytes(path.read_bytes())
    mean = sum(path.stat().st_size for path in chosen) / N_IMAGES
    return folder, f"{N_IMAGES} photographs of {mean / 1000:.0f} KB on average"


def described_peers(work: Work, names: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Make the environments; return the servers, and the reasons of those that are missing."""
    peers: list[Peer] = []
    missing: dict[str, str] = {}
    for name in names:
        print(f"{name}: environment", file=sys.stderr)
        try:
            peers += PEERS[name](work)
        except (NotInstalled, subprocess.CalledProcessError) as error:
            missing[name] = reason(error)
    return peers, missing


def measure(
    peers: Sequence[Peer], work: Work, options: argparse.Namespace
) -> tuple[list[Measured], dict[str, str], float]:
    """Measure all in turns.

    Returns:
        The figures, the reasons of those that did not run, and the share of the machine's CPU that
        all servers took while none was asked.
    """
    peaks = {precision: product_peak(precision) for precision in ("fp32", "bf16", "int8")}
    before, failed = encoders_alone(peers, work, options.seconds / 3)
    loads: dict[str, list[Load]] = {}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        folder, ports = Path(name), dict[str, int]()

        def ask(peer: Peer, seconds: float) -> Load | None:
            try:
                if peer.label not in ports:
                    write_requests(peer, work.photographs, folder / peer.label)
                    ports[peer.label] = stack.enter_context(peer.start())
                return load(ports[peer.label], folder / peer.label, options.concurrency, seconds)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failed[peer.label] = reason(error)
                return None

        for peer in peers:
            print(f"{peer.label}: start", file=sys.stderr)
            if peer.label not in failed:
                ask(peer, WARM_UP_S)
        idle = psutil.cpu_percent(interval=3) / 100
        for _ in range(options.rounds):
            for peer in peers:
                if peer.label in failed or (found := ask(peer, options.seconds)) is None:
                    continue
                loads.setdefault(peer.label, []).append(found)
                print(f"{peer.label}: {found.images_per_s:.1f} images/s", file=sys.stderr)
    running = [peer for peer in peers if peer.label not in failed]
    alone = before, encoders_alone(running, work, options.seconds / 3)[0]
    measured = [
        Measured(
            peer,
            loads[peer.label],
            max(found[peer.encoder][0] for found in alone if peer.encoder in found),
            alone[0][peer.encoder][1],
            peaks[peer.precision],
        )
        for peer in running
    ]
    return measured, failed, idle


def encoders_alone(
    peers: Sequence[Peer], work: Work, seconds: float
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
        command = [*peer.alone, str(work.photographs), str(seconds)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=peer.variables, capture_output=True, text=True, check=True
            )
        except subprocess.CalledProcessError as error:
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
    text = (error.stderr if isinstance(error, subprocess.CalledProcessError) else "") or str(error)
    return str(text).strip().splitlines()[-1][:200]


def smallest_cosine(
    features: list[list[float]], expected: list[list[float]] | None
) -> float | None:
    if expected is None:
        return None
    return float((np.array(features) * np.array(expected)).sum(axis=1).min())


def write_requests(peer: Peer, photographs: Path, folder: Path) -> None:
    folder.mkdir()
    for path in sorted(photographs.iterdir()):
        (folder / path.with_suffix(".http").name).write_bytes(peer.request(path.read_bytes()))


def load(port: int, requests: Path, concurrency: int, seconds: float) -> Load:
    """Ask one server for some seconds, from a process of its own."""
    files = map(str, sorted(requests.iterdir()))
    numbers = ["--port", str(port), "--seconds", str(seconds), "--concurrency", str(concurrency)]
    command = [sys.executable, str(CLIENT), *numbers, "--request", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    latencies_ms = [1000 * s for s in answer["latencies_s"]]
    return Load(answer["seconds"], Counter(answer["statuses"]), latencies_ms, answer["cpu_s"])


if __name__ == "__main__":
    main()
