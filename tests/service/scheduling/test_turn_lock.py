"""The lock is held by one thread, handed over in turns, and waited for until the deadline."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from prompt_serve.errors import DeadlineExceeded
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.turn_lock import TurnLock
from prompt_serve.service.scheduling.turns import Turn


def _until_waiting(lock: TurnLock, number: int) -> None:
    give_up = time.monotonic() + 20
    while len(lock._waiting) < number:
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.parametrize("greedy", [2, 5, 12])
def test_it_is_handed_over_in_turns(greedy: int) -> None:
    lock = TurnLock()
    order: list[str] = []

    def take(caller: str, request: int) -> None:
        with lock.hold(Turn(caller, request), None):
            order.append(caller)

    threads = [threading.Thread(target=take, args=("greedy", n)) for n in range(greedy)]
    threads.append(threading.Thread(target=take, args=("single", 0)))
    with lock.hold(Turn("first", 0), None):
        for number, thread in enumerate(threads):
            thread.start()
            _until_waiting(lock, number + 1)
        assert order == []
    for thread in threads:
        thread.join(20)

    assert order == ["greedy", "single", *["greedy"] * (greedy - 1)]


def test_several_threads_of_one_request_all_get_it_one_at_a_time() -> None:
    lock, inside, most = TurnLock(), [0], [0]

    def take() -> None:
        for _ in range(50):
            with lock.hold(Turn("a", "same"), Deadline.after(60)):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert most == [1]


def _hold(lock: TurnLock, turn: Turn, deadline: Deadline | None) -> None:
    with lock.hold(turn, deadline):
        pass


def test_who_waits_too_long_leaves_and_the_others_go_on() -> None:
    lock = TurnLock()
    with lock.hold(Turn("first", 0), None):
        with pytest.raises(DeadlineExceeded) as exceeded:
            _hold(lock, Turn("late", 0), Deadline.after(0.05))
        assert len(lock._waiting) == 0
    _hold(lock, Turn("late", 0), Deadline.after(0.05))

    assert str(exceeded.value) == (
        "The request's deadline passed before its turn had come. Allow more time."
    )


@pytest.mark.parametrize("others", [1, 2, 5])
def test_who_leaves_does_not_take_along_others_of_its_request(others: int) -> None:
    lock, turn = TurnLock(), Turn("a", "same")
    with ThreadPoolExecutor(others) as pool:
        with lock.hold(Turn("first", 0), None):
            deadline = Deadline.after(60)
            waiting = [pool.submit(_hold, lock, turn, deadline) for _ in range(others)]
            _until_waiting(lock, others)
            with pytest.raises(DeadlineExceeded):
                _hold(lock, turn, Deadline.after(0.01))
            assert len(lock._waiting) == others
        for one in waiting:
            one.result(20)


@pytest.mark.parametrize("seed", range(5))
def test_with_deadlines_of_a_moment_one_holds_it_at_a_time_and_in_the_end_nobody(seed: int) -> None:
    """Deadlines that often pass at the moment in which the lock is handed over."""
    lock, inside = TurnLock(), threading.Lock()

    def take(number: int) -> int:
        choose, entered = random.Random(100 * seed + number), 0
        for _ in range(40):
            deadline = Deadline.after(choose.random() * 0.002)
            with suppress(DeadlineExceeded), lock.hold(Turn(number % 2, number), deadline):
                assert inside.acquire(blocking=False)
                time.sleep(choose.random() * 0.0005)
                inside.release()
                entered += 1
        return entered

    with ThreadPoolExecutor(5) as pool:
        entered = list(pool.map(take, range(5), timeout=60))

    assert sum(entered) > 0
    assert len(lock._waiting) == 0
    _hold(lock, Turn("afterwards", 0), Deadline.after(0))
