"""Cancel the work of a request when its client disconnects."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

# Of the ASGI scope: has ``watch``, which takes a function to call on a disconnect, or None.
EXTENSION = "prompt_serve.disconnect"

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

    def leave() -> None:
        nonlocal has_left
        if not has_left:
            has_left = True
            working.cancel()

    try:
        with _watching(request, leave):
            return await work
    except asyncio.CancelledError:
        if has_left and not working.uncancel():
            raise ClientDisconnect from None
        raise  # cancelled by somebody else, too


@contextmanager
def _watching(request: Request, leave: Callable[[], None]) -> Iterator[None]:
    """Call ``leave`` if the client disconnects during the block."""
    extension = request.scope.get("extensions", {}).get(EXTENSION)
    if extension is not None:
        extension["watch"](leave)
        try:
            yield
        finally:
            extension["watch"](None)
        return

    async def wait() -> None:  # another server
        while (await request.receive())["type"] != "http.disconnect":
            pass
        leave()

    watching = asyncio.create_task(wait())
    try:
        yield
    finally:
        watching.cancel()
