"""Context of the current request: its id, the caller, what it asks for, its stage timings.

The outermost middleware enters a ``RequestContext``; the code that learns something about the
request writes it there, and the log, the trace, the ``Server-Timing`` header and the audit log read
it. Worker threads see it because ``Core`` runs their work in a copy of the request's context.
Outside of requests ``current_request()`` returns a blank context, so callers need no check.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from prompt_serve.service.byte_budget import UNLIMITED, Reservation
from prompt_serve.service.permissions import EVERYTHING, NO_LIMITS, Permissions, Quota
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.turns import Turn
from prompt_serve.service.stage_timings import StageTimings


@dataclass(frozen=True)
class Actor:
    """Caller of a request. ``key_id`` is empty for callers without a key."""

    name: str
    key_id: str = ""
    permissions: Permissions = EVERYTHING
    quota: Quota = NO_LIMITS


OIDC_KEY_ID = "oidc"  # of callers with a token of an identity provider
ANONYMOUS = Actor("anonymous")


@dataclass(eq=False)  # two requests are never the same
class RequestContext:
    """Facts about one request.

    ``client`` is the address of its connection, ``images`` and ``tasks`` are the numbers it asks
    for, ``passes`` those of its images through the image encoder. ``stale_s`` is the age of the
    tasks if the database could not be read. ``memory`` holds the bytes that it has in flight.
    """

    request_id: str = ""
    client: str = ""
    deadline: Deadline | None = None
    actor: Actor = ANONYMOUS
    images: int = 0
    tasks: int = 0
    passes: int = 0
    stale_s: float = 0.0
    admit_images: Callable[[int], None] | None = None  # raises QuotaExceeded
    timings: StageTimings = field(default_factory=StageTimings)
    memory: Reservation = field(default_factory=UNLIMITED.reservation)

    @property
    def turn(self) -> Turn:
        """Owner of the request's work: the name of its key or of the subject of its token, or its
        address where it has neither."""
        return Turn(self.actor.name if self.actor.key_id else self.client, self)

    def count_images(self, images: int) -> None:
        """Note the number of images before they are decoded.

        Raises:
            QuotaExceeded: the key may not send so many now.
        """
        if self.admit_images is not None:
            self.admit_images(images)
        self.images = images


_current: ContextVar[RequestContext | None] = ContextVar("prompt_serve_request", default=None)


def current_request() -> RequestContext:
    """Return the context of the request being answered; a blank one outside of requests."""
    return _current.get() or RequestContext()


@contextmanager
def request_scope(context: RequestContext) -> Iterator[None]:
    """Make ``context`` the current one inside the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
