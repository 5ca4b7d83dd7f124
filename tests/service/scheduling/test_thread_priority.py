"""Threads with a lower priority, also where the process was started with a low one."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from prompt_serve.service.scheduling.thread_priority import lower_priority
from tests.service.databases import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have priorities on Linux alone"
)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize("by", [0, 1, 5, 10, 40])
def test_a_thread_and_those_that_it_starts_are_behind_the_main_thread(by: int) -> None:
    def of_an_own_thread() -> tuple[int, int]:
        with ThreadPoolExecutor(1, initializer=partial(lower_priority, by)) as inner:
            return niceness(), inner.submit(niceness).result(20)

    before = niceness()
    with ThreadPoolExecutor(1, initializer=partial(lower_priority, by)) as outer:
        found = outer.submit(of_an_own_thread).result(20)

    expected = min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + by)
    assert found == (expected, expected)  # not twice as far behind
    assert niceness() == before


_WITHOUT_PRIVILEGES = """
import os, sys
from contextlib import suppress
from functools import partial
from prompt_serve.service.scheduling.fair_pool import FairPool
from prompt_serve.service.scheduling.thread_priority import lower_priority
from prompt_serve.service.scheduling.turns import Turn
os.nice(int(sys.argv[1]))
if os.geteuid() == 0:
    with suppress(PermissionError):  # in some containers
        os.setuid(65534)  # may not raise the priority of anything
pool = FairPool(2, "test", initializer=partial(lower_priority, 5))
print([pool.submit(Turn("a", n), int, str(n)).result(20) for n in range(10)])
pool.shutdown(wait=True)
"""


@pytest.mark.parametrize("nice", [0, 3, 12])
def test_a_pool_works_whatever_priority_its_process_was_started_with(nice: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_PRIVILEGES, str(nice)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == (f"{[*range(10)]}\n", "")
