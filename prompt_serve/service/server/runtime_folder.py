"""Folder of what the processes of a service share, and of all their temporary files.

Every process of the service holds a lock on it, which ends with the process, whatever ends it. A
folder that nobody holds is left of a service that was killed: the next start removes it.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "prompt-serve-run-"
_VARIABLE = "_PROMPT_SERVE_RUN"  # set by the supervisor for its workers; not a setting


def create() -> Path:
    """Create the folder, in the supervisor before its workers start; it is removed at the end.

    From then on it is the folder for temporary files of this process and of those it starts.

    Raises:
        OSError: there is no folder for temporary files, or it cannot be written.
    """
    base = Path(tempfile.gettempdir())
    remove_leftovers(base)
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=base))
    _hold(made)
    # Not earlier: what has this name and no lock is a leftover.
    folder = made.rename(made.with_name(made.name.removeprefix(".")))
    os.environ[_VARIABLE] = os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def hold() -> None:
    """Hold the folder of this service as long as this process lives. In a worker."""
    if folder := os.environ.get(_VARIABLE):
        with contextlib.suppress(OSError):
            _hold(Path(folder))


def remove_leftovers(base: Path) -> None:
    """Remove the folders of services of this user that have ended."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, another user's, or has just been removed
            _remove_if_left(folder)


def _hold(folder: Path) -> int:
    """Lock a folder and return its descriptor, which stays open."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def _remove_if_left(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)
