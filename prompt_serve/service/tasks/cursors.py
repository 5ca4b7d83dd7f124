"""Opaque cursors for paged lists. A cursor holds the last entry of a page, not a row number, so
entries written between two pages are neither repeated nor skipped.
"""

import base64
import binascii
import json

from prompt_serve.errors import RequestInvalid
from prompt_serve.service.storage.preconditions import is_task_name


def encode_cursor(last: str | int) -> str:
    """Return the cursor of the page that follows the entry ``last``."""
    return base64.urlsafe_b64encode(json.dumps([last]).encode()).decode().rstrip("=")


def decode_name_cursor(cursor: str | None) -> str:
    """Return the task name that a page follows; empty for the first page.

    Raises:
        RequestInvalid: not a cursor of a list of names.
    """
    last = _decode(cursor, "")
    if last != "" and not (isinstance(last, str) and is_task_name(last)):
        raise _invalid(cursor)
    return str(last)


def decode_id_cursor(cursor: str | None) -> int | None:
    """Return the id that a page follows; None for the first page.

    Raises:
        RequestInvalid: not a cursor of a list of numbered entries.
    """
    last = _decode(cursor, None)
    if last is not None and (not isinstance(last, int) or abs(last) >= 2**63):
        raise _invalid(cursor)
    return last


def _decode(cursor: str | None, first: object) -> object:
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
        f"{str(cursor)[:100]!r} is not a cursor. Send the `next` value of the previous page "
        f"unchanged."
    )
