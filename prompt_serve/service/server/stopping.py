"""End of the service: nobody is reset, and everything ends within its bound.

On SIGTERM the supervisor closes its copy of the listening socket, then ends the workers. A worker
accepts the connections that wait, closes the socket, finishes its requests and exits.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
from typing import Any

import uvicorn
from circus.sighandler import SysHandler

_DRAIN_S = 1.0
_SO_ATTACH_FILTER = 26
_PR_SET_PDEATHSIG = 1


def close_sockets_first() -> None:
    """Make the supervisor close its listening sockets before it ends the workers."""
    original = SysHandler.quit

    def quit_without_sockets(self: Any) -> None:
        # While it listens, the system accepts connections that no worker will ever answer.
        self.controller.arbiter.sockets.close_all()
        original(self)

    SysHandler.quit = quit_without_sockets


def answer_what_waits() -> None:
    """Make uvicorn accept all waiting connections before it closes its socket. In a worker."""
    original = uvicorn.Server.shutdown

    async def shutdown(self: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or []:
            await _accept_waiting(listening)
        await original(self, sockets)

    uvicorn.Server.shutdown = shutdown  # type: ignore[method-assign]


def end_with_parent() -> None:
    """End this worker, as by SIGTERM, when its supervisor ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def exit_within(timeout_s: float) -> None:
    """End this process after ``timeout_s``, whatever its threads wait for."""
    timer = threading.Timer(timeout_s, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


async def _accept_waiting(listening: socket.socket) -> None:
    """Let the event loop accept the connections that wait, and no new ones."""
    _refuse_new(listening)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while select.select([listening], [], [], 0)[0]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)  # for their requests to be read


def _refuse_new(listening: socket.socket) -> None:
    """Ignore further handshakes: their clients try again, and are refused by the closed socket."""
    if sys.platform != "linux" or listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    reject = ctypes.create_string_buffer(bytes([6, 0, 0, 0, 0, 0, 0, 0]))  # BPF: return 0
    program = bytes(_Program(1, ctypes.addressof(reject)))
    with contextlib.suppress(OSError):  # unusual sandboxes; then some more are accepted
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
