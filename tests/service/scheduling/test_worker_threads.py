"""Changes that wait behind others end at their deadlines, and hold nothing after them."""

import asyncio
import gc
import threading
import weakref

import pytest

from prompt_serve.errors import DeadlineExceeded
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.worker_threads import WorkerThreads

CHANGERS = 8


class _Body:
    """Body of an upload."""


async def _late(threads: WorkerThreads, caller: str, timeout_s: float) -> "weakref.ref[_Body]":
    body = _Body()
    context = RequestContext(client=caller, deadline=Deadline.after(timeout_s))
    with request_scope(context), pytest.raises(DeadlineExceeded, match="before its turn had come"):
        await threads.change(id, body)
    return weakref.ref(body)


@pytest.mark.parametrize("uploads", [1, 2, 10, 30])
@pytest.mark.parametrize("callers", [1, 5])
@pytest.mark.parametrize("timeout_s", [0.0, 0.002])
def test_the_body_of_a_late_upload_is_let_go_though_its_turn_never_comes(
    uploads: int, callers: int, timeout_s: float
) -> None:
    threads = WorkerThreads(max_changes=32)
    begun, end = threading.Barrier(CHANGERS + 1), threading.Event()

    def hold() -> bool:
        begun.wait(20)
        return end.wait(60)

    async def main() -> None:
        with request_scope(RequestContext(client="large")):
            held = [asyncio.create_task(threads.change(hold)) for _ in range(CHANGERS)]
        await asyncio.to_thread(begun.wait, 20)
        bodies = [
            await _late(threads, f"caller {number % callers}", timeout_s)
            for number in range(uploads)
        ]
        assert not any(task.done() for task in held)
        async with asyncio.timeout(20):
            while any(body() for body in bodies):  # errors hold them, and their tracebacks
                await asyncio.sleep(0.001)
                gc.collect()
        assert len(threads._changers) == 0
        end.set()
        assert await asyncio.gather(*held) == [True] * CHANGERS

    asyncio.run(main())
    threads.close()
