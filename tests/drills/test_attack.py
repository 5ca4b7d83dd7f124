"""The attack notices what it is for: planted faults are counted; another seed is another attack."""

import asyncio
import contextlib
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from drills import attack
from drills.attack import KINDS, _longest_wait, _State, _tracebacks
from drills.attacks import bodies, framing, images, kind
from drills.attacks.kind import Target
from drills.load import Ledger
from drills.stand import Stand

ANSWER = b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _sent_to(answer: bytes, closes: bool, folder: Path, through: str) -> Target:
    """Send a request to a server that answers these bytes, and return what was counted."""

    async def run() -> Target:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if not closes:
                with contextlib.suppress(ConnectionError):
                    await reader.read()  # until the client has left
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            served.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = Target(Stand(folder, {}, server.sockets[0].getsockname()[1]))
        async with target.open():
            if through == "send":
                await target.send(REQUEST, "a request")
            else:
                await target.ask("GET", "/livez", name="a request")
        server.close()
        await asyncio.wait_for(served.wait(), 20)
        return target

    return asyncio.run(run())


@pytest.mark.parametrize("through", ["send", "ask"])
@pytest.mark.parametrize(
    ("answer", "closes", "found"),
    [
        (ANSWER % 200, False, {}),
        (ANSWER % 422, True, {}),
        (ANSWER % 503, False, {}),
        (ANSWER % 504, False, {}),
        (ANSWER % 500, False, {"5xx": 1}),
        (ANSWER % 502, True, {"5xx": 1}),
        (b"", True, {"lost": 1}),
        (ANSWER[:20], True, {"lost": 1}),
        (ANSWER % 200 + b"more", False, {}),
        ((ANSWER % 200)[:-1], True, {"lost": 1}),
        (b"nonsense\r\n\r\n", True, {"lost": 1}),
    ],
)
def test_planted_answers_are_counted(
    answer: bytes, closes: bool, found: dict[str, int], through: str, tmp_path: Path
) -> None:
    target = _sent_to(answer, closes, tmp_path, through)

    assert dict(target.found) == found
    assert target.instances == 1
    assert len(target.faults) == sum(found.values())


@pytest.mark.parametrize("answer", [b"", b"HTTP", ANSWER[:30], (ANSWER % 200)[:-1]])
def test_a_planted_hang_is_counted(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "TIMEOUT_S", 0.3)

    assert dict(_sent_to(answer, False, tmp_path, "send").found) == {"hung": 1}


def _compared(
    tmp_path: Path, before: _State, *, highest_mb: float = 0, wait_s: float = 0, log: str = ""
) -> dict[str, int]:
    stand = Stand(tmp_path, {"max_bytes_in_flight": str(50 * 2**20)})
    stand.log.write_text(log)
    target = Target(stand)
    before.compare(stand, target, before.memory_mb, highest_mb, wait_s)
    return dict(target.found)


SAME = _State(0.0, 0, frozenset())  # as of a stand without processes
FAILED = (
    'x\nTraceback (most recent call last):\n  File "a.py", line 1, in b\n    c\nValueError: d\n'
)


def test_planted_differences_are_counted(tmp_path: Path) -> None:
    ended = frozenset([psutil.Process()])

    assert _compared(tmp_path, SAME) == {}
    assert _compared(tmp_path, _State(-101.0, 0, frozenset())) == {"grew": 1}
    assert _compared(tmp_path, _State(0.0, -21, frozenset())) == {"grew": 1}
    assert _compared(tmp_path, _State(0.0, 0, ended)) == {"lost": 1}
    assert _compared(tmp_path, SAME, highest_mb=149) == {}
    assert _compared(tmp_path, SAME, highest_mb=151) == {"grew": 1}
    assert _compared(tmp_path, SAME, wait_s=21) == {"hung": 1}
    assert _compared(tmp_path, SAME, log=FAILED * 3) == {"5xx": 3}


@pytest.mark.parametrize(
    "error", [ValueError("a: b"), KeyError("x"), OSError(5, "y"), SystemExit()]
)
@pytest.mark.parametrize("cause", [None, TimeoutError(), RuntimeError("z")])
def test_errors_in_a_log_are_told_with_their_place(
    error: BaseException, cause: BaseException | None
) -> None:
    try:
        try:
            raise error from cause
        except BaseException:
            text = "2026 INFO a\n" + traceback.format_exc() + "2026 INFO b: c\n"
    finally:
        sys.last_value = None  # nothing else keeps it

    found = _tracebacks(text)
    assert len(found) == text.count("Traceback")
    assert found[-1].startswith(type(error).__name__)
    assert "test_attack.py" in found[-1]


def test_the_longest_wait_counts_refusals_in_between_and_both_ends() -> None:
    ledger = Ledger()
    ledger.good += [(0.0, 0.5), (1.0, 1.5), (4.0, 4.5), (4.5, 4.75)]

    assert _longest_wait(ledger, 1.0, 5.0) == 3.0
    assert _longest_wait(ledger, 1.0, 9.0) == 4.25
    assert _longest_wait(Ledger(), 1.0, 2.0) == 1.0


GENERATORS: dict[str, Callable[[random.Random], object]] = {
    "images": images.any_image,
    "damaged images": images.damaged_image,
    "declaring": images.declaring,
    "json": bodies.json_body,
    "arrays": bodies.array_body,
    "forms": bodies.form_body,
    "heads": framing._head,
    "hiding": framing._hiding,
}


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the images that it is asked for
@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_makes_the_same_instances_and_another_one_others(name: str) -> None:
    made = [[GENERATORS[name](random.Random(seed)) for seed in range(5)] for _ in range(2)]

    assert made[0] == made[1]
    assert len(set(map(repr, made[0]))) > 1


def test_kinds_have_titles_of_their_own() -> None:
    assert len({one.what for one in KINDS.values()}) == len(KINDS) >= 15


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.parametrize("name", ["heads", "smuggling", "images", "hang-ups", "forms"])
def test_a_small_attack_finds_no_fault(name: str) -> None:
    assert attack.main([name], seed=0, count=24, write=False) == 0
