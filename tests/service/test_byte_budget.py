"""The byte budget: never more in use than its parts allow, and every byte returned exactly once."""

import asyncio
import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_serve.errors import Overloaded, PromptServeError, RequestTooLarge, ServiceError
from prompt_serve.service import byte_budget
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

    with pytest.raises(Overloaded) as caught:
        asyncio.run(second.grow_async(100, part))
    assert caught.value.retry_after_s == 2.0
    assert str(caught.value) == (
        f"{LIMITS[part]} bytes of {part} are in flight; 100 more did not fit within 0.05 s. Retry "
        f"in 2 s."
    )
    with pytest.raises(Overloaded, match="1 more did not fit"):
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

    with pytest.raises(RequestTooLarge) as caught:
        reservation.grow(LIMITS[part] + 1 - before, part)

    assert caught.value.facts == {"limit": LIMITS[part], "count": LIMITS[part] + 1}
    assert str(caught.value) == (
        f"The request needs {LIMITS[part] + 1} bytes of memory for its {part}; at most "
        f"{LIMITS[part]} may be in flight. Send smaller or fewer images or files at once, or raise "
        f"PROMPT_SERVE_MAX_BYTES_IN_FLIGHT (1,000)."
    )
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

    with pytest.raises(ServiceError, match=r"^The request is over\.$"):
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


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("caller", [None, "key"])
@pytest.mark.parametrize("waiters", [1, 2, 5])
def test_the_oldest_of_those_that_fit_are_granted_first(
    part: Part, caller: str | None, waiters: int
) -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first = budget.reservation()
    first.grow(LIMITS[part], part)
    granted: list[int] = []

    async def wait(number: int) -> None:
        reservation = budget.reservation(caller and f"{caller} {number}")
        await reservation.grow_async(100, part)
        granted.append(number)

    async def main() -> None:
        tasks = []
        for number in range(waiters):
            tasks.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0)
        for number in range(waiters if part == "work" else min(2, waiters)):
            first.shrink(100, part)
            await tasks[number]
            assert granted == list(range(number + 1))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert budget.in_use == LIMITS[part]


@pytest.mark.parametrize("part", PARTS)
def test_who_was_cancelled_does_not_take_the_place_of_others(part: Part) -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first, cancelled, others = budget.reservation(), budget.reservation(), budget.reservation()
    first.grow(LIMITS[part], part)

    async def main() -> None:
        gone = asyncio.create_task(cancelled.grow_async(200, part))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(others.grow_async(200, part))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        first.release()
        await waiting

    asyncio.run(main())
    assert budget.in_use == others.held[part] == 200
    assert cancelled.held == {"bodies": 0, "work": 0}


@pytest.mark.parametrize("part", PARTS)
def test_who_is_granted_as_its_time_ends_has_the_bytes(part: Part) -> None:
    budget = ByteBudget(1000, max_wait_s=0.02)
    first, second = budget.reservation(), budget.reservation()
    first.grow(LIMITS[part], part)

    async def main() -> None:
        waiting = asyncio.create_task(second.grow_async(100, part))
        await asyncio.sleep(0)
        first.release()
        time.sleep(0.05)  # the loop is late: it learns of both at once
        await waiting

    asyncio.run(main())
    assert budget.in_use == second.held[part] == 100


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("held", [1, 7, 100])
def test_an_eighth_is_for_callers_that_hold_nothing(part: Part, held: int) -> None:
    budget = ByteBudget(1000, max_wait_s=0)
    for_one = LIMITS[part] - LIMITS[part] // 8
    budget.reservation("key").grow(held, part)
    second = budget.reservation("key")
    with pytest.raises(Overloaded):
        second.grow(for_one - held + 1, part)
    second.grow(for_one - held, part)
    budget.reservation("other").grow(LIMITS[part] - for_one, part)
    assert budget.in_use == LIMITS[part]


def test_who_is_released_waits_no_more() -> None:
    budget = ByteBudget(1000, max_wait_s=30)
    first, released, other = (budget.reservation() for _ in range(3))
    first.grow(750)

    async def main() -> None:
        tasks = [asyncio.create_task(one.grow_async(600)) for one in (released, other)]
        await asyncio.sleep(0)
        released.release()
        first.release()
        await tasks[1]
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert (budget.in_use, other.held["work"], released.held["work"]) == (600, 600, 0)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("returned", [0, 1, 40, 100, 101, 10_000])
def test_shrinking_returns_what_there_is_at_most(part: Part, returned: int) -> None:
    changes: list[int] = []
    budget = ByteBudget(1000, changes.append)
    for caller in ("key", None):
        reservation = budget.reservation(caller)
        reservation.grow(100, part)
        reservation.shrink(returned, part)
        assert reservation.held[part] == budget.in_use == 100 - min(returned, 100)
        reservation.release()

    assert budget.in_use == sum(changes) == 0
    assert changes[0] == 100
    assert 0 not in changes
    assert not budget._held


def test_work_is_the_part_of_what_names_none() -> None:
    budget = ByteBudget(1000)
    reservation = budget.reservation()
    reservation.grow(20)
    asyncio.run(reservation.grow_async(20))
    reservation.shrink(10)
    assert reservation.held == {"bodies": 0, "work": 30}
    with budget.reserved(50):
        assert budget.in_use == 80
    with pytest.raises(ZeroDivisionError), budget.reserved(50):
        raise ZeroDivisionError
    assert budget.in_use == 30
    assert budget.limit_bytes == 1000


@pytest.mark.parametrize("size", [0, 1, 2**40])
def test_a_budget_without_a_limit_counts_and_refuses_nothing(size: int) -> None:
    changes: list[int] = []
    budget = ByteBudget(None, changes.append)
    for part in PARTS:
        for caller in ("key", "key", None):
            budget.reservation(caller).grow(size, part)

    assert budget.in_use == sum(changes) == 6 * size
    assert budget.max_wait_s == 5.0


GIB = 2**30


@pytest.mark.parametrize("where", ["first", "second", "both"])
@pytest.mark.parametrize("limit", [64 * 2**20, GIB // 2, GIB])
def test_the_limit_of_the_container_is_the_memory(
    where: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        if where in (file.name, "both"):
            file.write_text(f"{limit}\n")
        elif where == "second":
            file.write_text("max\n")  # in the first; the other case is a file that is missing
    monkeypatch.setattr(byte_budget, "_CGROUP_LIMITS", tuple(map(str, files)))

    assert memory_bytes() == limit
    for workers in (1, 2, 5, 64):
        expected = max(128 * 2**20, limit // 3 // workers)
        found = default_bytes_in_flight(workers)
        assert found == expected
        assert isinstance(found, int)


def test_without_a_container_the_memory_is_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_budget, "_CGROUP_LIMITS", ())
    machine = memory_bytes()
    (tmp_path / "limit").write_text(str(2**62))  # more than there is
    monkeypatch.setattr(byte_budget, "_CGROUP_LIMITS", (str(tmp_path / "limit"),))

    assert memory_bytes() == machine
    if (meminfo := Path("/proc/meminfo")).exists():
        kib = int(meminfo.read_text().split("MemTotal:", 1)[1].split()[0])
        assert machine == 1024 * kib
    # A third of any machine that has less is below the maximum.
    assert default_bytes_in_flight(1) == max(128 * 2**20, min(2 * GIB, machine // 3))


def test_the_default_follows_the_memory_and_the_workers() -> None:
    assert memory_bytes() > 0
    one, many = default_bytes_in_flight(1), default_bytes_in_flight(64)
    assert 128 * 2**20 <= many <= one <= 2 * 2**30
    assert one == min(2 * 2**30, max(128 * 2**20, memory_bytes() // 3))
