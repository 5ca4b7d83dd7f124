"""API keys cached in a worker for half a second, so that a revoked key stops within a second.

Older entries are read from the database again: under load, twice per second and key. While the
database cannot be read, keys that were read before stay valid for a limited time. The last use of a
key is written at most once per minute, in the background.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prompt_serve.errors import NotReady
from prompt_serve.service.storage.api_keys import Keys, StoredKey
from prompt_serve.service.storage.outage import Outage

FRESH_S = 0.5
NOTE_USE_EVERY_S = 60.0
_MAX_CACHED = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CachedKey:
    key: StoredKey
    read_at: float


class ApiKeyCache:
    """Thread-safe cache of API keys.

    ``remembered`` and ``has_keys`` never block; ``find``, ``read_has_keys`` and ``note_use`` do.

    Args:
        keys: API keys in the database.
        clock: monotonic clock, in seconds.
        stale_limit_s: maximum age of a key that is used without the database.
    """

    def __init__(
        self,
        keys: Keys,
        clock: Callable[[], float] = time.monotonic,
        stale_limit_s: float = 0.0,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._stale_limit_s = stale_limit_s
        self._outage = Outage(stale_limit_s, clock)
        self._found: dict[str, _CachedKey] = {}
        self._noted: dict[str, float] = {}
        self._uses: dict[str, tuple[int, int]] = {}  # requests and images by key
        self._counting = threading.Lock()
        self._none_exist_at = float("-inf")
        self._some_exist = False

    def remembered(self, key_id: str) -> StoredKey | None:
        """Return the key if it was read within ``FRESH_S``."""
        found = self._found.get(key_id)
        if found is None or self._clock() - found.read_at > FRESH_S:
            return None
        return found.key

    def find(self, key_id: str) -> StoredKey | None:
        """Read the key; None if there is no such key."""
        found = self._outage.read(lambda: (self._read(key_id),), lambda: self._last(key_id))
        return found[0]

    def _last(self, key_id: str) -> tuple[StoredKey | None] | None:
        found = self._found.get(key_id)
        if found is None or self._clock() - found.read_at > self._stale_limit_s:
            return None
        return (found.key,)

    def _read(self, key_id: str) -> StoredKey | None:
        read_at = self._clock()  # before the read: the key may change from here on
        key = self._keys.find(key_id)
        if len(self._found) > _MAX_CACHED:
            self._found = {}
        if key is not None:  # unknown ids are not cached: callers can invent any number
            self._found[key_id] = _CachedKey(key, read_at)
        return key

    @property
    def has_keys(self) -> bool | None:
        """True if a key was ever created; None if that must be read again."""
        if self._some_exist:
            return True
        return False if self._clock() - self._none_exist_at <= FRESH_S else None

    def read_has_keys(self) -> bool:
        """Read ``has_keys``."""
        return self._outage.read(self._read_has_keys, self._last_has_keys)

    def _last_has_keys(self) -> bool | None:
        """Return False if no key existed within the limit; True is never forgotten."""
        return False if self._clock() - self._none_exist_at <= self._stale_limit_s else None

    def _read_has_keys(self) -> bool:
        read_at = self._clock()
        self._some_exist = self._keys.exist()  # keys are never removed, so True stays true
        self._none_exist_at = read_at
        return self._some_exist

    def count(self, key_id: str, images: int) -> None:
        """Count a request and its images, to be written with the next use."""
        with self._counting:
            requests, counted = self._uses.get(key_id, (0, 0))
            self._uses[key_id] = (requests + 1, counted + images)

    def use_is_due(self, key: StoredKey) -> bool:
        """Return True, once per ``NOTE_USE_EVERY_S``, if the use of the key should be written."""
        now = self._clock()
        if now - self._noted.get(key.id, float("-inf")) < NOTE_USE_EVERY_S:
            return False
        self._noted[key.id] = now
        return True

    def note_use(self, key: StoredKey) -> None:
        """Write that the key was used now; only logs if the database fails."""
        self._write_uses([key.id])

    def close(self) -> None:
        """Write all uses that were not written yet."""
        self._write_uses(list(self._uses))

    def _write_uses(self, key_ids: Iterable[str]) -> None:
        for key_id in key_ids:
            with self._counting:
                requests, images = self._uses.pop(key_id, (0, 0))
            try:
                self._keys.note_use(key_id, requests, images)
            except NotReady as error:
                _log.warning("could not record the last use of key %s: %s", key_id, error.message)
