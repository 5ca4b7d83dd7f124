"""Call a function on many items, each in a process of its own on this machine.

A process that dies fails its own item and no other. All of them end with the process that started
them, however that one ends.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS_VARIABLE = "OMP_NUM_THREADS"  # read by torch and by numpy's matrix products
_Running = dict[connection.Connection, tuple[int, BaseProcess]]


@dataclass(frozen=True)
class Failed:
    """Outcome of a call that raised an error, or whose process died."""

    message: str


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, at_once: int, threads: int | None
) -> Iterator[tuple[int, Result | Failed]]:
    """Yield the index and the outcome of each call, as they finish.

    Args:
        function: of a module, so that another process can import it.
        items: can be pickled.
        at_once: number of processes at a time.
        threads: of each process, for torch and numpy; None: as many as this one has.
    """
    waiting = list(enumerate(items))[::-1]
    running: _Running = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, item = waiting.pop()
                receiver, process = _started(function, item, threads)
                running[receiver] = index, process
            finished = connection.wait(list(running))
            for receiver in [one for one in running if one in finished]:
                index, process = running.pop(receiver)
                yield index, _outcome(receiver, process)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _started(
    function: Callable[[Item], Result], item: Item, threads: int | None
) -> tuple[connection.Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, item, threads))
    with _environment(_variables(threads)):  # numpy reads them when it is imported
        process.start()
    sender.close()  # the pipe then ends with the process
    return receiver, process


def call_with_threads(
    function: Callable[[Item], Result], item: Item, threads: int | None
) -> Result | Failed:
    """Call the function in this process, where torch is not loaded yet."""
    os.environ.update(_variables(threads))
    try:
        return function(item)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")


def _variables(threads: int | None) -> dict[str, str]:
    return {} if threads is None else {THREADS_VARIABLE: str(threads)}


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _call(
    sender: connection.Connection, function: Callable[[Any], Any], item: Any, threads: int | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the starter, which ends us
    threading.Thread(target=_end_with_starter, daemon=True).start()
    sender.send(call_with_threads(function, item, threads))
    sender.close()


def _end_with_starter() -> None:
    starter = multiprocessing.parent_process()
    if starter is not None:
        connection.wait([starter.sentinel])
        os._exit(1)


def _outcome(receiver: connection.Connection, process: BaseProcess) -> Any:
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        return Failed(_death(process.exitcode or 0))
    process.join()
    return outcome


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"Its process ended with exit code {exit_code}, and without a result."
    reason = signal.Signals(-exit_code).name
    hint = ", as the system does if memory runs out" if reason == "SIGKILL" else ""
    return f"Its process was ended by {reason}{hint}."
