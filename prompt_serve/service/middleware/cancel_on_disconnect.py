"""Cancel the work of a request when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

_T = TypeVar("_T")


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await ``work``; cancel it if the client disconnects.

    Args:
        request: its body has been read, so the next message of its client is the disconnect.
        work: computes the answer.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    working = asyncio.current_task()
    assert working is not None  # noqa: S101 (a coroutine runs in a task)
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and not working.uncancel():
            raise ClientDisconnect from None
        raise  # cancelled by somebody else, too
    finally:
        watching.cancel()
