"""Calls in processes of their own: every item has an outcome, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from prompt_serve.training.many.processes import THREADS_VARIABLE, Failed, map_in_processes

TIMEOUT_S = 120


def act(item: str) -> Any:
    """What each kind of item does in its process."""
    match item:
        case "raise":
            raise ValueError("no such thing")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "threads":
            return os.environ[THREADS_VARIABLE]
        case "process":
            return os.getpid()
    return item.upper()


FAILURES = {
    "raise": "ValueError: no such thing",
    "die": "Its process was ended by SIGKILL, as the system does if memory runs out.",
    "exit": "Its process ended with exit code 3, and without a result.",
}


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_call_that_fails_takes_no_other_with_it(at_once: int) -> None:
    items = ["a", *FAILURES, "b"]

    found = dict(map_in_processes(act, items, at_once=at_once, threads=1))

    expected = {0: "A", 4: "B"} | {
        items.index(kind): Failed(message) for kind, message in FAILURES.items()
    }
    assert found == expected


def test_each_item_has_a_process_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    items = ["process", "process", "threads"]

    found = dict(map_in_processes(act, items, at_once=1, threads=3))

    assert found[2] == "3"
    assert len({found[0], found[1], os.getpid()}) == 3
    assert THREADS_VARIABLE not in os.environ


def test_without_a_number_the_threads_are_those_of_the_starter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "5")

    assert list(map_in_processes(act, ["threads"], at_once=1, threads=None)) == [(0, "5")]


def test_who_stops_asking_leaves_no_process() -> None:
    before = set(psutil.Process().children())

    outcomes = map_in_processes(time.sleep, [0.0, 300.0, 300.0], at_once=3, threads=1)
    assert next(outcomes) == (0, None)
    del outcomes

    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(kind: signal.Signals) -> None:
    program = (
        "import time\n"
        "from prompt_serve.training.many.processes import map_in_processes\n"
        "if __name__ == '__main__':\n"
        "    list(map_in_processes(time.sleep, [300, 300], at_once=2, threads=1))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as starter:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(children) < 2 and time.monotonic() < deadline:
            found = psutil.Process(starter.pid).children()
            children = [c for c in found if "spawn_main" in " ".join(c.cmdline())]
            time.sleep(0.02)
        assert len(children) == 2

        starter.send_signal(kind)
        starter.wait(TIMEOUT_S)

        _, alive = psutil.wait_procs(children, timeout=TIMEOUT_S)
        assert not alive
