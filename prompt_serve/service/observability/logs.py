"""Log formatters: one record per line, human-readable or JSON, each with its request id.

Every formatted line passes ``redacted`` last, so that an API key or a URL's password in a message
or a traceback is never written.

The JSON formatter is our own: python-json-logger writes every attribute of a record, and those
include what BentoML's filter and uvicorn add (``levelname_bracketed``, ``color_message``, ...).
"""

import atexit
import json
import logging
import re
import threading
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.loop_results import at_end_of_step, running_loop

FIELDS = "prompt_serve_fields"  # attribute of a record: its structured fields
_LOGGERS_WITH_HANDLERS = ("", "bentoml", "uvicorn.error", "circus")
_SECRETS = (
    (re.compile(r"(ps_[0-9a-f]{12}_)[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"(://[^:/@\s\"']*:)[^@/\s\"']+@"), r"\1***@"),
    (re.compile(r"(?i)((?:bearer|basic)\s+)(?!ps_)[A-Za-z0-9+/=._~-]{8,}"), r"\1***"),
)


def redacted(text: str) -> str:
    """Replace API keys, passwords in URLs, and credentials after ``Bearer`` or ``Basic``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def configure_logging(log_format: Literal["human", "json"], level: str) -> None:
    """Set the format of all existing handlers, and the level of our own loggers.

    Call it in a worker: BentoML installs its handlers before it loads the service.
    """
    # No formatter of ours shows them, and they cost as much as writing the line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the logging HOWTO says
    formatter = JsonFormatter() if log_format == "json" else HumanFormatter()
    for name in _LOGGERS_WITH_HANDLERS:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
            handler.filters.clear()  # BentoML's adds what our formatters leave out
            if type(handler) is logging.StreamHandler and not isinstance(
                handler.stream, LineStream
            ):
                handler.stream = LineStream(handler.stream)
    logging.getLogger("prompt_serve").setLevel(level.upper())


class LineStream:
    """Stream that writes the lines of a step of the event loop together, those of threads at once.

    Each write is a system call during which another thread may take the interpreter's lock.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()
        self._is_due = False
        self._writing = threading.Lock()
        atexit.register(self._write_lines)

    def write(self, text: str) -> None:
        """Write whole lines."""
        self._lines.append(text)
        if running_loop() is None:
            self._write_lines()
        elif not self._is_due:
            self._is_due = True
            at_end_of_step(self._write_lines)

    def _write_lines(self) -> None:
        with self._writing, suppress(OSError, ValueError):  # nobody reads them any more
            self._is_due = False
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            self._stream.write("".join(lines))
            self._stream.flush()


class HumanFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO POST /v1/classify 200 ...``, followed by any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.getMessage()}"
        request_id = current_request().request_id
        if request_id:
            line += f" [{request_id}]"
        error = _error(self, record)
        return redacted(f"{line}\n{error}" if error else line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``message``, ``request_id``,
    the record's ``FIELDS``, and ``error`` (a traceback). Members that are None are left out."""

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": current_request().request_id or None,
            **getattr(record, FIELDS, {}),
            "error": _error(self, record),
        }
        present = {name: value for name, value in members.items() if value is not None}
        return redacted(json.dumps(present, ensure_ascii=False, default=str))


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else None
