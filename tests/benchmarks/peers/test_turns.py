"""Servers take turns, one at a time; what fails is a reason, and the others go on."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.peers.peer import Peer
from benchmarks.peers.turns import (
    FAILURES,
    Plan,
    encoders_alone,
    in_turns,
    reason,
    turn,
    write_requests,
)
from tests.benchmarks.peers.small_peers import small_peer

PLAN = Plan(rounds=2, seconds=0.1, warm_up_s=0.05, concurrency=3, pause_s=0.05, answer_s=30)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 1000)
    return folder


@pytest.mark.parametrize(
    ("names", "rounds", "order"),
    [
        ("a", 1, "a"),
        ("a", 3, "aaa"),
        ("ab", 2, "abab"),
        ("abc", 3, "abcabcabc"),
        ("cab", 2, "cabcab"),
        ("", 2, ""),
    ],
)
def test_a_round_has_a_turn_of_every_server(
    names: str, rounds: int, order: str, tmp_path: Path
) -> None:
    taken: list[str] = []
    peers = [small_peer(tmp_path, "good", name=name) for name in names]

    turns, failed = in_turns(peers, rounds, lambda peer: taken.append(peer.name))

    assert "".join(taken) == order
    assert {name: len(own) for name, own in turns.items()} == {f"{n}, fp32": rounds for n in names}
    assert not failed


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize(
    ("fails_in", "order", "text"), [(1, "abcacac", "no"), (2, "abcabcac", "no (turn 2)")]
)
def test_a_server_that_fails_has_no_more_turns(
    fails_in: int, order: str, text: str, kind: type[Exception], tmp_path: Path
) -> None:
    taken: list[str] = []
    peers = [small_peer(tmp_path, "good", name=name) for name in "abc"]

    def take(peer: Peer) -> int:
        taken.append(peer.name)
        if peer.name == "b" and taken.count("b") == fails_in:
            raise kind("no")
        return len(taken)

    turns, failed = in_turns(peers, 3, take)

    assert "".join(taken) == order
    assert failed == {"b, fp32": text}
    assert [len(turns[label]) for label in ("a, fp32", "c, fp32")] == [3, 3]
    assert "b, fp32" not in turns


def test_a_fault_of_the_benchmark_itself_is_not_a_row(tmp_path: Path) -> None:
    def take(peer: Peer) -> None:
        raise KeyError(peer.name)

    with pytest.raises(KeyError):
        in_turns([small_peer(tmp_path, "good")], 1, take)


def test_servers_run_one_at_a_time_and_fail_alone(tmp_path: Path, photographs: Path) -> None:
    kinds = (
        "dies at start",
        "good",
        "answers 500",
        "ends when asked",
        "orphan in a session of its own",
    )
    peers = [small_peer(tmp_path, kind) for kind in kinds]
    requests = tmp_path / "requests"
    before = set(psutil.Process().children(recursive=True))
    ports: list[int] = []

    def take(peer: Peer) -> float:
        assert set(psutil.Process().children(recursive=True)) <= before
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
        found = turn(peer, write_requests(peer, photographs, requests), PLAN)
        assert found.load.statuses["200"] == len(found.load.latencies_ms) >= PLAN.concurrency
        assert found.load.seconds >= PLAN.seconds
        assert found.memory > 2**20
        assert 0 <= found.others <= 1
        return found.load.images_per_s

    turns, failed = in_turns(peers, PLAN.rounds, take)

    says = {
        "dies at start, fp32": "ended with status 3: no weights | in <the folder>",
        "answers 500, fp32": "no answer has status 200: {'500': ",
        "ends when asked, fp32": "Error: ",  # of the client, which lost its connections
    }
    assert failed.keys() == says.keys()
    for label, text in says.items():
        assert text in failed[label]
    assert {label: len(rates) for label, rates in turns.items()} == {
        "good, fp32": 2,
        "orphan in a session of its own, fp32": 2,
    }
    assert min(rate for rates in turns.values() for rate in rates) > 0
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, photographs: Path) -> None:
    peer = small_peer(tmp_path, "never answers")
    plan = Plan(rounds=1, seconds=0.1, warm_up_s=0.1, concurrency=1, pause_s=0, answer_s=1)
    requests = write_requests(peer, photographs, tmp_path / "requests")

    turns, failed = in_turns([peer], 1, lambda peer: turn(peer, requests, plan))

    assert not turns
    assert failed == {"never answers, fp32": "no answer within 1.1 s"}


def test_requests_are_written_once_and_whole(tmp_path: Path, photographs: Path) -> None:
    peer = small_peer(tmp_path, "good")

    folder = write_requests(peer, photographs, tmp_path / "requests")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = write_requests(peer, tmp_path / "missing", folder)

    assert again == folder
    assert sorted(first) == ["0.http", "1.http", "2.http"]
    for name, content in first.items():
        head, _, body = content.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /classify HTTP/1.1\r\n")
        assert body == (photographs / name).with_suffix(".jpg").read_bytes()
        assert f"Content-Length: {len(body)}".encode() in head


def alone(rate: float, features: list[list[float]]) -> list[str]:
    found = json.dumps({"images_per_s": rate, "features": features})
    return [sys.executable, "-I", "-S", "-c", f"print('loading'); print({found!r})"]


def test_encoders_are_measured_once_each_and_compared(tmp_path: Path, photographs: Path) -> None:
    same, turned = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]
    broken = [sys.executable, "-I", "-S", "-c", "import sys; sys.exit('loading\\nno weights')"]
    peers = [
        small_peer(tmp_path, "broken", encoder="x", alone=broken),
        small_peer(tmp_path, "a", alone=alone(5.0, same)),
        small_peer(tmp_path, "b", alone=["never", "run"]),  # of the same encoder
        small_peer(tmp_path, "c", encoder="onnx int8", alone=alone(9.5, turned)),
        small_peer(tmp_path, "d", encoder="y", alone=[str(tmp_path / "missing")]),
    ]

    found, failed = encoders_alone(peers, photographs, 1)

    rates = {encoder: rate for encoder, (rate, _) in found.items()}
    cosines = {encoder: cosine for encoder, (_, cosine) in found.items()}
    assert rates == {"open_clip fp32": 5.0, "onnx int8": 9.5}
    assert cosines == pytest.approx({"open_clip fp32": 1.0, "onnx int8": 0.8})
    assert failed["broken, fp32"] == "no weights"
    assert "missing" in failed["d, fp32"]
    assert sorted(failed) == ["broken, fp32", "d, fp32"]


def test_without_the_reference_there_is_no_cosine(tmp_path: Path, photographs: Path) -> None:
    peer = small_peer(tmp_path, "c", encoder="onnx int8", alone=alone(9.5, np.eye(2).tolist()))

    assert encoders_alone([peer], photographs, 1)[0] == {"onnx int8": (9.5, None)}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("one\ntwo"), "two"),
        (RuntimeError(""), "RuntimeError"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
        (subprocess.CalledProcessError(1, "x", stderr="Traceback\nOSError: y\n"), "OSError: y"),
        (subprocess.CalledProcessError(1, "x"), "Command 'x' returned non-zero exit status 1."),
        (subprocess.TimeoutExpired("x", 2.5), "no answer within 2.5 s"),
        (RuntimeError("a" * 300), "a" * 200),
    ],
)  # fmt: skip
def test_a_reason_is_one_short_line(error: Exception, text: str) -> None:
    assert reason(error) == text
