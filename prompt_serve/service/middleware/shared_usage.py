"""Use of keys by all workers of a service: numbers in a file that is mapped into their memory.

A key has a slot: two levels, each with the time of its last change, and the requests that each
worker answers for it. A worker counts in a column of its own, which is its own as long as it holds
a lock; so the requests of a worker that was killed are those of a column that nobody holds.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import time
import weakref
from array import array
from pathlib import Path

_VARIABLE = "_PROMPT_SERVE_KEY_USAGE"  # file, set by the supervisor for its workers; not a setting
_SLOTS = 10_000
_ID_BYTES = 16
_FREE = bytes(_ID_BYTES)
_IDS_END = _SLOTS * _ID_BYTES
_LEVELS = 2  # per slot
_LEVEL_BYTES = 16  # two float64: level and time
_COUNT_BYTES = 4
_TURN_BYTES = 8
_MAX_WAIT_S = 0.04
_PAUSE_S = 50e-6


def prepare_file(folder: Path, workers: int) -> None:
    """Create the file of a service in ``folder``, in the supervisor before its workers start.

    Raises:
        OSError: the disk is full.
    """
    path = folder / "key-usage"
    # Written, not only made that long: a page that the disk has no room for would end a worker.
    path.write_bytes(bytes(_size(_columns(workers)) + _TURN_BYTES))
    os.environ[_VARIABLE] = str(path)


class SharedUsage:
    """The file of the service; outside of one, a file of its own. For one thread.

    Attributes:
        lock: held while numbers of a slot are read and changed.
    """

    def __init__(self) -> None:
        self._file = _open()
        weakref.finalize(self, os.close, self._file)  # not before: it would release the locks
        size = os.fstat(self._file).st_size
        self._columns = (size - _size(0)) // (_SLOTS * _COUNT_BYTES)
        self._ids = mmap.mmap(self._file, size)  # and what follows them
        self._levels = memoryview(self._ids)[_IDS_END : _size(0)].cast("d")
        self._running = memoryview(self._ids)[_size(0) : -_TURN_BYTES].cast("I")
        self.lock = _FileLock(self._file, memoryview(self._ids)[-_TURN_BYTES:].cast("Q"))
        self._known: dict[str, tuple[bytes, int]] = {}
        with self.lock:
            self._column = self._own_column()

    def slot(self, key: str) -> int:
        """Return the slot of a key, a new one if it has none. With the lock."""
        id_, slot = self._known.get(key) or (_id_of(key), -1)
        if slot < 0 or self._ids[slot * _ID_BYTES : (slot + 1) * _ID_BYTES] != id_:
            slot = self._find(id_)
            if len(self._known) >= _SLOTS:
                self._known = {}
            self._known[key] = id_, slot
        return slot

    def level(self, slot: int, which: int) -> tuple[float, float]:
        """Return a level, and the time at which it had it; minus infinity if it is new."""
        at = 2 * (_LEVELS * slot + which)
        return self._levels[at], self._levels[at + 1]

    def set_level(self, slot: int, which: int, level: float, time_s: float) -> None:
        """Set a level. With the lock."""
        at = 2 * (_LEVELS * slot + which)
        self._levels[at], self._levels[at + 1] = level, time_s

    def running(self, slot: int, limit: int) -> int:
        """Return the number of running requests, exact from ``limit`` on. With the lock."""
        counts = self._running[slot * self._columns : (slot + 1) * self._columns]
        if sum(counts) >= limit:
            for column, count in enumerate(counts):
                if count and not self._is_held(column):
                    counts[column] = 0
        return sum(counts)

    def add_running(self, slot: int, change: int) -> None:
        """Count a request of this worker that begins or ends."""
        at = slot * self._columns + self._column
        self._running[at] = max(0, self._running[at] + change)  # if its slot or column was lost

    def _find(self, id_: bytes) -> int:
        if (at := self._ids.find(id_, 0, _IDS_END)) >= 0:
            return at // _ID_BYTES
        if (at := self._ids.find(_FREE, 0, _IDS_END)) < 0:
            self._forget_idle()
            at = max(0, self._ids.find(_FREE, 0, _IDS_END))
        self._ids[at : at + _ID_BYTES] = id_
        slot = at // _ID_BYTES
        for which in range(_LEVELS):
            self.set_level(slot, which, 0.0, float("-inf"))
        return slot

    def _forget_idle(self) -> None:
        """Free the slots of keys without running requests."""
        for slot in range(_SLOTS):
            if not self.running(slot, 1):
                self._ids[slot * _ID_BYTES : (slot + 1) * _ID_BYTES] = _FREE

    def _own_column(self) -> int:
        """Take a column that nobody holds, and count from 0 in it."""
        for column in range(self._columns):
            if _try_lock(self._file, 1 + column):
                self._running[column :: self._columns] = memoryview(array("I", bytes(4 * _SLOTS)))
                return column
        return self._columns - 1

    def _is_held(self, column: int) -> bool:
        if column == self._column:
            return True
        if not _try_lock(self._file, 1 + column):
            return True
        _unlock(self._file, 1 + column)
        return False


class _FileLock:
    """Lock on a file between processes.

    It is held for microseconds. Only a worker that is stopped meanwhile holds it longer; the others
    then work without it, so that their event loops do not wait for a worker that hangs.

    Args:
        file: its first byte is locked.
        turns: a number in the file, raised with every turn.
    """

    def __init__(self, file: int, turns: memoryview) -> None:
        self._file = file
        self._turns = turns
        self._too_long = -1  # turn for which this worker has waited long enough

    def __enter__(self) -> None:
        give_up = 0.0
        while not _try_lock(self._file, 0):
            now = time.monotonic()
            give_up = give_up or now + _MAX_WAIT_S
            if now > give_up or self._turns[0] == self._too_long:
                self._too_long = self._turns[0]
                return
            time.sleep(_PAUSE_S)
        self._turns[0] += 1

    def __exit__(self, *_: object) -> None:
        _unlock(self._file, 0)


def _open() -> int:
    if path := os.environ.get(_VARIABLE):
        with contextlib.suppress(FileNotFoundError):  # its supervisor has ended
            return os.open(path, os.O_RDWR)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(_size(_columns(1)) + _TURN_BYTES))
        file.flush()
        return os.dup(file.fileno())


def _columns(workers: int) -> int:
    return 2 * workers  # some may still end while others have taken their place


def _size(columns: int) -> int:
    """Return the bytes of all slots."""
    return _SLOTS * (_ID_BYTES + _LEVELS * _LEVEL_BYTES + columns * _COUNT_BYTES)


def _id_of(key: str) -> bytes:
    """Return what stands for a key. It begins and ends with no zero, unlike free slots."""
    return (
        b"\1"
        + hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=_ID_BYTES - 2).digest()
        + b"\1"
    )


def _try_lock(file: int, at: int) -> bool:
    """Lock one byte of a file; return False if another process holds it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(file: int, at: int) -> None:
    fcntl.lockf(file, fcntl.LOCK_UN, 1, at)
