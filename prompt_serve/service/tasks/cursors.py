"""Opaque cursors of lists: where a page ended. What is written meanwhile neither repeats an entry
nor leaves one out, since the next page begins behind the last one shown, not at a number of rows.
"""

import base64
import binascii
import json

from prompt_serve.errors import RequestInvalid
from prompt_serve.service.storage.preconditions import is_task_name


def cursor_of(last: str | int) -> str:
    """The cursor of the page that follows the entry ``last``."""
    return base64.urlsafe_b64encode(json.dumps([last]).encode()).decode().rstrip("=")


def text_after(cursor: str | None) -> str:
    """The name of the task that a page follows; empty for the first page."""
    last = _last(cursor, "")
    if last != "" and not (isinstance(last, str) and is_task_name(last)):
        raise _invalid(cursor)
    return str(last)


def number_after(cursor: str | None) -> int | None:
    """The number that a page of numbered entries follows; None for the first page."""
    last = _last(cursor, None)
    if last is not None and (not isinstance(last, int) or abs(last) >= 2**63):
        raise _invalid(cursor)
    return last


def _last(cursor: str | None, first: object) -> object:
    if not cursor:
        return first
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        [last] = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise _invalid(cursor) from error
    return last


def _invalid(cursor: str | None) -> RequestInvalid:
    return RequestInvalid(
        f"{str(cursor)[:100]!r} is not a cursor. Give the `next` of the page before as it is."
    )
