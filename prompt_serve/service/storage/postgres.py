"""Connections to PostgreSQL that wait no longer than the current request may.

A server that hangs (stopped, out of memory, behind a cut network) answers nothing, and its kernel
still acknowledges what it is sent: neither its own timeouts nor those of TCP end the wait. So the
client counts the time itself, and drops a connection whose answer is late.
"""

import math
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from prompt_serve.service.request_context import current_request

# The kernel drops a connection whose peer is gone, also while nobody waits for it.
_KEEPALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


class AnswerLate(psycopg.OperationalError):
    """The server did not answer in time, or not at all. ``is_unconfirmed`` if that was a commit."""

    def __init__(self, message: str, *, is_unconfirmed: bool = False) -> None:
        super().__init__(message)
        self.is_unconfirmed = is_unconfirmed


class BoundedConnection(psycopg.Connection[Any]):
    """Connection each of whose waits ends with the request's deadline.

    ``longest_wait_s`` is the limit of a wait outside of requests.
    """

    longest_wait_s = math.inf  # while it connects, which has a timeout of its own
    _is_committing = False

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        # A commit is not given up with the request: whether it was made would be unknown.
        limit_s = self.longest_wait_s
        if not self._is_committing:
            limit_s = min(limit_s, _left_s())
        limit_s = limit_s if timeout is None else min(limit_s, timeout)
        try:
            return super().wait(gen, interval, limit_s)
        except psycopg.errors._WaitTimeout as error:
            self.pgconn.finish()
            message = f"it did not answer within {limit_s:.1f} s"
            raise AnswerLate(message, is_unconfirmed=self._is_committing) from error

    def commit(self) -> None:
        self._is_committing = True
        try:
            super().commit()
        except psycopg.OperationalError as error:
            # Lost on the way: the server may have committed, and not have been able to say so.
            if self.broken:
                raise AnswerLate(str(error), is_unconfirmed=True) from error
            raise
        finally:
            self._is_committing = False


def _left_s() -> float:
    """Return what is left of the current request's time; infinity outside of requests."""
    deadline = current_request().deadline
    return math.inf if deadline is None else deadline.left_s


def bound_waits(engine: Engine, connect_timeout_s: float, longest_wait_s: float) -> None:
    """Make all connections of ``engine`` of this kind."""

    def connect(_: object, __: object, arguments: Any, options: dict[str, Any]) -> Any:
        connect_timeout = max(1, math.ceil(min(_left_s(), connect_timeout_s)))
        connection = BoundedConnection.connect(
            *arguments, **{**_KEEPALIVE, "connect_timeout": connect_timeout, **options}
        )
        connection.longest_wait_s = longest_wait_s
        return connection

    sa.event.listen(engine, "do_connect", connect)
