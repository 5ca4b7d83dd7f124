"""Keys as a worker remembers them: for half a second, so that a revoked key stops within one.

The service asks the database when it remembers nothing that fresh; under load that is twice a
second and key. When a key was last used is written at most once a minute, beside the requests.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from prompt_serve.errors import NotReady
from prompt_serve.service.storage.api_keys import Keys, StoredKey

FRESH_S = 0.5
NOTE_USE_EVERY_S = 60.0
_MAX_REMEMBERED = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Remembered:
    key: StoredKey
    read_at: float


class ApiKeyCache:
    """Thread-safe. ``remembered`` and ``has_keys`` never block; ``find`` and ``note_use`` do.

    Args:
        keys: of the database.
        clock: seconds that never go back.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._found: dict[str, _Remembered] = {}
        self._noted: dict[str, float] = {}
        self._none_exist_at = float("-inf")
        self._some_exist = False

    def remembered(self, key_id: str) -> StoredKey | None:
        """The key, if it was read a moment ago."""
        found = self._found.get(key_id)
        if found is None or self._clock() - found.read_at > FRESH_S:
            return None
        return found.key

    def find(self, key_id: str) -> StoredKey | None:
        """The key as it is now; None where there is none."""
        read_at = self._clock()  # before reading: what is read may change from here on
        key = self._keys.find(key_id)
        if len(self._found) > _MAX_REMEMBERED:
            self._found = {}
        if key is not None:  # ids that nobody has are not kept: anyone can make them up
            self._found[key_id] = _Remembered(key, read_at)
        return key

    @property
    def has_keys(self) -> bool | None:
        """Whether there ever was a key; None where that has to be read anew."""
        if self._some_exist:
            return True
        return False if self._clock() - self._none_exist_at <= FRESH_S else None

    def read_has_keys(self) -> bool:
        """``has_keys``, read now."""
        read_at = self._clock()
        self._some_exist = self._keys.exist()  # keys are never removed, so True stays true
        self._none_exist_at = read_at
        return self._some_exist

    def use_is_due(self, key: StoredKey) -> bool:
        """Whether it is time to write down that the key is used. Says so once."""
        now = self._clock()
        if now - self._noted.get(key.id, float("-inf")) < NOTE_USE_EVERY_S:
            return False
        self._noted[key.id] = now
        return True

    def note_use(self, key: StoredKey) -> None:
        try:
            self._keys.note_use(key.id)
        except NotReady as error:
            _log.warning("the last use of key %s could not be noted: %s", key.id, error.message)
