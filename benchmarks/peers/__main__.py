"""The service and other servers of CLIP, with the same weights and photographs, in turns.

    python -m benchmarks.peers                       all
    python -m benchmarks.peers --only own litserve   some
    python -m benchmarks.peers --write               and into docs/performance.md

Each peer has an environment of its own in build/peers, made at the first run from the package
index; nothing else is downloaded. One server runs at a time: it is started for its turn, warmed up,
asked by a client in a process of its own, and stopped with all its processes. A round has a turn of
every server, so that a drift of the machine shows between the rounds.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.http_throughput import N_IMAGES, write_images
from benchmarks.peers import bentoml, fastapi, infinity, litserve, own
from benchmarks.peers.environments import NotInstalled
from benchmarks.peers.peaks import product_peak
from benchmarks.peers.peer import Peer, Work
from benchmarks.peers.report import Measured, chart, section, table
from benchmarks.peers.turns import (
    Plan,
    Turn,
    encoders_alone,
    in_turns,
    reason,
    turn,
    write_requests,
)
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
WARM_UP_S = 3.0
FORM_OF_PHOTOGRAPHS = (500, 375)


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: the server is stopped
    build: Path = options.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        warm_up_s=WARM_UP_S,
        concurrency=options.concurrency,
    )
    with tempfile.TemporaryDirectory() as folder:
        photographs, described = photographs_of(options.photographs, Path(folder) / "images")
        work = Work(build, write_weights(build / "weights"), photographs, options.cache)
        peers, missing = described_peers(work, options.only)
        if options.prepare:
            print(*(peer.label for peer in peers), *missing.items(), sep="\n")
            return
        measured, failed, peaks = measure(peers, work, plan)
    missing |= failed
    print(table(measured, missing))
    if options.write:
        CHART.write_text(chart(measured), encoding="utf-8")
        text = section(measured, missing, plan=plan, photographs=described, peaks=peaks)
        write_table("peers", f"\n{text}\n", PAGE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PEERS, default=list(PEERS), help="servers to measure")
    add("--concurrency", type=int, default=16, help="requests in flight [default: %(default)s]")
    add("--seconds", type=float, default=8, help="seconds per turn [default: %(default)s]")
    add("--rounds", type=int, default=3, help="turns per server [default: %(default)s]")
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
    peers: Sequence[Peer], work: Work, plan: Plan
) -> tuple[list[Measured], dict[str, str], dict[str, float]]:
    """Measure all in turns.

    Returns:
        The figures, the reasons of those that did not run, and the operations per second of one
        large matrix product, by precision.
    """
    peaks = {precision: product_peak(precision) for precision in ("fp32", "bf16", "int8")}
    before, missing = encoders_alone(peers, work.photographs, plan.seconds / 3)
    with tempfile.TemporaryDirectory() as name:

        def take(peer: Peer) -> Turn:
            folder = Path(name) / peer.label
            return turn(peer, write_requests(peer, work.photographs, folder), plan)

        encoding = [peer for peer in peers if peer.label not in missing]
        turns, failed = in_turns(encoding, plan.rounds, take)
    served = [peer for peer in encoding if peer.label in turns]
    after, _ = encoders_alone(served, work.photographs, plan.seconds / 3)
    measured = [
        Measured(
            peer,
            turns[peer.label],
            max(found[peer.encoder][0] for found in (before, after) if peer.encoder in found),
            before[peer.encoder][1],
            peaks[peer.precision],
        )
        for peer in served
    ]
    return measured, missing | failed, peaks


if __name__ == "__main__":
    main()
