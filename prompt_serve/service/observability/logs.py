"""Logs: one line a record, for people or as JSON, each with the id of its request.

Whatever the line, keys and the passwords of URLs are cut out of it as the last step: a secret that
slipped into a message or a traceback is not written all the same.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Literal

from prompt_serve.service.request_context import current

FIELDS = "prompt_serve_fields"  # of a record: what it tells beside its message
_LOGGERS_WITH_HANDLERS = ("", "bentoml", "uvicorn.error", "circus")
_SECRETS = (
    (re.compile(r"(ps_[0-9a-f]{12}_)[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"(://[^:/@\s\"']*:)[^@/\s\"']+@"), r"\1***@"),
    (re.compile(r"(?i)((?:bearer|basic)\s+)(?!ps_)[A-Za-z0-9+/=._~-]{8,}"), r"\1***"),
)


def redacted(text: str) -> str:
    """``text`` without keys, passwords in URLs, and what follows ``Bearer`` or ``Basic``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def set_up(form: Literal["human", "json"], level: str) -> None:
    """Make the handlers there are write in one form, and let ours of ``level`` and above through.

    In a worker: BentoML has set up its handlers before it loads the service.
    """
    formatter = JsonLines() if form == "json" else HumanLines()
    for name in _LOGGERS_WITH_HANDLERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
    logging.getLogger("prompt_serve").setLevel(level.upper())


class HumanLines(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO POST /v1/classify 200 ...``, with tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.getMessage()}"
        request_id = current().request_id
        if request_id:
            line += f" [{request_id}]"
        error = _error(self, record)
        return redacted(f"{line}\n{error}" if error else line)


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, ``request_id``,
    ``error`` (a traceback), and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        facts = current()
        members = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": facts.request_id or None,
            **getattr(record, FIELDS, {}),
            "error": _error(self, record),
        }
        told = {name: value for name, value in members.items() if value is not None}
        return redacted(json.dumps(told, ensure_ascii=False, default=str))


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else None
