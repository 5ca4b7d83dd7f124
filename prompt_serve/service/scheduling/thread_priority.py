"""Priority of threads: those whose work can wait let the others go first."""

import os
import sys
import threading
from contextlib import suppress


def lower_priority(by: int) -> None:
    """Run the calling thread ``by`` steps of niceness behind the main thread.

    Only on Linux, where each thread has its own priority; new threads inherit it.
    """
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + by
        # Refused where the thread is further behind already, and in unusual sandboxes.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
