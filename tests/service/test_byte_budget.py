"""The byte budget: never more in use than its parts allow, and every byte returned exactly once."""

import asyncio
import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from prompt_serve.errors import Overloaded, PromptServeError, RequestTooLarge, ServiceError
from prompt_serve.service.byte_budget import (
    ByteBudget,
    Part,
    default_bytes_in_flight,
    memory_bytes,
)

PARTS: list[Part] = ["bodies", "work"]
LIMITS = {"bodies": 250, "work": 750}  # of a budget of 1,000


@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_fit_waits_until_something_is_released(part: Part) -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first, second = budget.reservation(), budget.reservation()
    first.grow(LIMITS[part], part)
    thread = threading.Thread(target=second.grow, args=(100, part))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert budget.in_use == LIMITS[part]

    first.release()
    thread.join(30)

    assert not thread.is_alive()
    assert budget.in_use == 100
    second.release()
    second.release()
    assert budget.in_use == 0


@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_fit_in_time_is_overloaded(part: Part) -> None:
    budget = ByteBudget(1000, max_wait_s=0.05)
    first, second = budget.reservation(), budget.reservation()
    first.grow(LIMITS[part], part)

    with pytest.raises(Overloaded, match="100 more did not fit") as caught:
        asyncio.run(second.grow_async(100, part))
    assert caught.value.retry_after_s > 0
    with pytest.raises(Overloaded):
        second.grow(1, part)

    second.release()
    assert budget.in_use == LIMITS[part]
    first.release()
    assert budget.in_use == 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("before", [0, 1, 100])
def test_what_can_never_fit_is_refused_at_once(part: Part, before: int) -> None:
    budget = ByteBudget(1000, max_wait_s=600)
    reservation = budget.reservation()
    reservation.grow(before, part)

    with pytest.raises(RequestTooLarge, match=r"MAX_BYTES_IN_FLIGHT \(1,000\)") as caught:
        reservation.grow(LIMITS[part] + 1 - before, part)

    assert caught.value.facts == {"limit": LIMITS[part], "count": LIMITS[part] + 1}
    assert budget.in_use == before


def test_one_part_keeps_nothing_out_of_the_other() -> None:
    budget = ByteBudget(1000, max_wait_s=0.01)
    budget.reservation().grow(750)
    budget.reservation().grow(250, "bodies")

    assert budget.in_use == 1000


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sizes", [(100, 100, 50), (50,) * 20, (1,) * 1000, (7,) * 200, (218, 32)])
def test_no_caller_takes_the_last_of_it_alone(part: Part, sizes: tuple[int, ...]) -> None:
    budget = ByteBudget(1000, max_wait_s=0)
    held = []
    for size in sizes * 4:
        reservation = budget.reservation("greedy")
        with contextlib.suppress(Overloaded):
            reservation.grow(size, part)
            held.append(reservation)
    assert budget.in_use <= LIMITS[part] - LIMITS[part] // 8
    assert budget.in_use > LIMITS[part] // 2

    small = budget.reservation("modest")
    small.grow(LIMITS[part] // 8, part)
    with pytest.raises(Overloaded):
        budget.reservation("modest").grow(1, part)
    for one in (*held, small):
        one.release()
    assert budget.in_use == 0
    whole = budget.reservation("greedy")
    for size in (1, LIMITS[part] - 1):  # one request may take all of it, also bit by bit
        whole.grow(size, part)
    whole.release()
    assert not budget._held


def test_small_reservations_overtake_large_ones_and_empty_ones_never_wait() -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first, large, small = (budget.reservation() for _ in range(3))
    first.grow(600)
    thread = threading.Thread(target=large.grow, args=(700,))
    thread.start()

    small.grow(150)
    small.grow(0)
    budget.reservation().grow(0, "bodies")

    first.release()
    small.release()
    thread.join(30)
    assert budget.in_use == 700


def test_a_released_reservation_takes_no_more() -> None:
    budget = ByteBudget(1000)
    reservation = budget.reservation()
    reservation.release()

    with pytest.raises(ServiceError, match="over"):
        reservation.grow(1)
    assert budget.in_use == 0


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first, waiting = budget.reservation(), budget.reservation()
    first.grow(750)

    async def cancelled() -> None:
        task = asyncio.create_task(waiting.grow_async(500))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())

    first.release()

    waiting.release()
    assert budget.in_use == 0


@pytest.mark.parametrize("seed", range(5))
def test_threads_and_tasks_that_fail_or_are_cancelled_return_every_byte_once(seed: int) -> None:
    """Random work in threads and on a loop at once; what is in use is counted independently."""
    changes: list[int] = []
    budget = ByteBudget(1000, changes.append, max_wait_s=0.02)
    too_much = []

    def check() -> None:
        if any(budget._in_use[part] > LIMITS[part] for part in PARTS):
            too_much.append(dict(budget._in_use))

    def in_a_thread(number: int) -> None:
        choose = random.Random(seed * 1000 + number)
        for _ in range(30):
            failing = contextlib.suppress(PromptServeError, ZeroDivisionError)
            with failing, budget.reserved(choose.randrange(800)):
                check()
                if choose.random() < 0.2:
                    raise ZeroDivisionError

    async def request(choose: random.Random) -> None:
        reservation = budget.reservation()
        try:
            for _ in range(choose.randrange(4)):
                size = choose.randrange(300)
                part = choose.choice(PARTS)
                await reservation.grow_async(size, part)
                check()
                if choose.random() < 0.3:
                    reservation.shrink(choose.randrange(600), part)
                await asyncio.sleep(choose.random() * 0.002)
        finally:
            reservation.release()
            reservation.release()

    async def on_the_loop() -> None:
        choose = random.Random(seed)
        for _ in range(20):
            tasks = [asyncio.create_task(request(choose)) for _ in range(10)]
            await asyncio.sleep(choose.random() * 0.004)
            for task in tasks:
                if choose.random() < 0.4:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(
                r is None or isinstance(r, PromptServeError | asyncio.CancelledError)
                for r in results
            )

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(in_a_thread, number) for number in range(4)]
        asyncio.run(on_the_loop())
        for thread in threads:
            thread.result()

    assert too_much == []
    assert sum(changes) == budget.in_use == 0
    assert budget._waiting == []


def test_the_default_follows_the_memory_and_the_workers() -> None:
    assert memory_bytes() > 0
    one, many = default_bytes_in_flight(1), default_bytes_in_flight(64)
    assert 128 * 2**20 <= many <= one <= 2 * 2**30
    assert one == min(2 * 2**30, max(128 * 2**20, memory_bytes() // 3))
