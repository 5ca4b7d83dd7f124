"""Log lines: their format, and secrets that never appear in them."""

import asyncio
import io
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from prompt_serve.service.observability.logs import (
    FIELDS,
    HumanFormatter,
    JsonFormatter,
    LineStream,
    redacted,
)
from prompt_serve.service.observability.request_log import server_timing
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.stage_timings import StageTimings

KEY = "ps_0123456789ab_" + "sEcReT" * 7 + "x"


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, "file.py", 1, message, arguments, None)
    setattr(made, FIELDS, fields)
    return made


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} is wrong",
        f"Authorization: Bearer {KEY}",
        "Authorization: bearer abcdefghijklmnop",
        "Basic a2V5OnNlY3JldA==",
        "postgresql+psycopg://me:sEcReT@db.example/registry",
        'connect("postgresql://:sEcReT@db")',
    ],
)
def test_secrets_are_cut_out(text: str) -> None:
    for formatter in (HumanFormatter(), JsonFormatter()):
        line = formatter.format(record("%s", text))
        for secret in ("sEcReT", "abcdefghijklmnop", "a2V5OnNlY3JldA"):
            assert secret not in line
    assert "ps_0123456789ab_***" in redacted(KEY)  # the id stays: it names the key


def test_secrets_of_tracebacks_are_cut_out_too() -> None:
    try:
        raise ValueError(f"no such key: {KEY}")
    except ValueError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    for formatter in (HumanFormatter(), JsonFormatter()):
        line = formatter.format(failed)
        assert "ValueError" in line
        assert "sEcReT" not in line


def test_json_lines_are_objects_with_the_request_and_the_fields() -> None:
    with request_scope(RequestContext(request_id="r1")):
        line = JsonFormatter().format(record("two\nlines %d", 1, route="/v1/x", images=None))
    members = json.loads(line)
    assert "\n" not in line
    assert members["message"] == "two\nlines 1"
    assert (members["level"], members["logger"], members["request_id"]) == ("warning", "a.b", "r1")
    assert members["route"] == "/v1/x"
    assert "images" not in members


def test_json_lines_have_nothing_that_other_frameworks_put_on_records() -> None:
    """BentoML's filter and uvicorn set further attributes, terminal colors among them."""
    foreign = record("message")
    foreign.levelname_bracketed, foreign.trace_msg = "[WARNING]", ""
    foreign.color_message, foreign.request_id = "\x1b[36mmessage", 7

    members = json.loads(JsonFormatter().format(foreign))

    assert members.keys() == {"time", "level", "logger", "message"}


class Written(io.StringIO):
    """Stream that counts its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str, /) -> int:
        self.writes += bool(text)
        return super().write(text)


@pytest.mark.parametrize("lines", [1, 2, 8, 40])
@pytest.mark.parametrize("steps", [1, 3])
def test_lines_of_one_step_of_the_loop_are_written_together_in_order(
    lines: int, steps: int
) -> None:
    stream = Written()
    logger = logging.Logger("steps")
    logger.addHandler(logging.StreamHandler(LineStream(stream)))

    async def main() -> None:
        for step in range(steps):
            for line in range(lines):
                logger.warning("%d.%d", step, line)
            assert stream.writes == step  # not before the step ends
            await asyncio.sleep(0)

    asyncio.run(main())
    expected = [f"{step}.{line}" for step in range(steps) for line in range(lines)]
    assert stream.getvalue().split() == expected
    assert stream.writes == steps


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_lines_of_threads_are_written_at_once_and_none_is_lost(threads: int) -> None:
    stream = Written()
    logger = logging.Logger("threads")
    logger.addHandler(logging.StreamHandler(LineStream(stream)))

    def write(thread: int) -> None:
        for line in range(50):
            logger.warning("%d.%d", thread, line)
            assert f"{thread}.{line}\n" in stream.getvalue()

    async def main() -> None:
        async def one(line: int) -> None:
            logger.warning("loop.%d", line)
            await asyncio.sleep(0)

        with ThreadPoolExecutor(threads) as pool:
            written = [pool.submit(write, thread) for thread in range(threads)]
            for line in range(50):
                await one(line)
            for future in written:
                await asyncio.wrap_future(future)

    asyncio.run(main())
    writers = [*map(str, range(threads)), "loop"]
    for writer in writers:
        own = [line for line in stream.getvalue().split() if line.startswith(f"{writer}.")]
        assert own == [f"{writer}.{line}" for line in range(50)]


def test_a_stream_that_nobody_reads_disturbs_nobody() -> None:
    stream = io.StringIO()
    stream.close()
    LineStream(stream).write("lost\n")


def test_server_timing_counts_images_side_by_side_once() -> None:
    timings = StageTimings()
    timings.add("queue", 2.0, 2.5)
    timings.add("decode", 1.0, 2.0)
    timings.add("decode", 1.5, 2.25)  # beside the first, in another thread
    assert server_timing(timings, 3.0) == (
        "decode;dur=1250.00, queue;dur=500.00, total;dur=3000.00"
    )
    assert timings.by_stage()["decode"].busy_s == pytest.approx(1.75)
