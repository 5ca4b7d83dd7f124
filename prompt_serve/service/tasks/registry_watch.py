"""Read the registry now and then, so that an outage finds what requests need in memory."""

import logging
import threading

from prompt_serve.errors import NotReady
from prompt_serve.service.observability import metrics
from prompt_serve.service.tasks.resolver import TaskResolver

_INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


class RegistryWatch:
    """Background thread that keeps a resolver's names fresh and logs outages.

    Args:
        resolver: of the service.
        limit_s: time that an outage is tolerated; 0: there is nothing to keep.
    """

    def __init__(self, resolver: TaskResolver, limit_s: float) -> None:
        self._resolver = resolver
        self._interval_s = min(_INTERVAL_S, limit_s / 4)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-watch", daemon=True)
        if limit_s:
            self._thread.start()

    def close(self) -> None:
        """Stop the thread; a read that hangs is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        was_stale = False
        while not self._stopping.wait(self._interval_s):
            try:
                self._resolver.keep_known()
            except NotReady as error:
                _log.warning("the registry cannot be read: %s", error.message)
            # The thread must outlive any fault of the database.
            except Exception:
                _log.exception("the registry cannot be read")
            stale_s = self._resolver.stale_s
            metrics.stale_seconds.set(stale_s)
            if bool(stale_s) != was_stale:
                was_stale = bool(stale_s)
                _log.warning(
                    "the registry cannot be read: serving the tasks in memory"
                    if was_stale
                    else "the registry can be read again"
                )
