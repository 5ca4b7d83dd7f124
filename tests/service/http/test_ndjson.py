"""Answers in NDJSON: whatever happens after the first line is told by the last one."""

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prompt_serve.errors import (
    BackboneMismatch,
    DeadlineExceeded,
    NotReady,
    ProbeMismatch,
    TaskNotFound,
)
from prompt_serve.schemas import LastLine
from prompt_serve.service.http.ndjson import NDJSON, ndjson_answer

ERRORS = {
    "backbone-mismatch": BackboneMismatch("Another backbone.", learned_on="a", served="b"),
    "probe-mismatch": ProbeMismatch("Other features."),
    "task-not-found": TaskNotFound("Gone.", name="pets", loaded=()),
    "not-ready": NotReady("The database is away.", retry_after_s=1.0),
    "deadline-exceeded": DeadlineExceeded("Too late.", timeout_s=1.0),
    "internal-error": RuntimeError("a secret of the code"),
}


def answer(n_lines: int, error: Exception | None) -> httpx.Response:
    async def lines() -> AsyncIterator[bytes]:
        for n in range(n_lines):
            yield b'{"index": %d}\n' % n
        if error:
            raise error

    async def route(request: Request) -> Response:
        return ndjson_answer(lines())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=[Route("/", route)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get("/")

    return asyncio.run(ask())


@pytest.mark.parametrize("n_lines", [0, 1, 5])
@pytest.mark.parametrize("code", ERRORS)
def test_an_error_is_the_last_line_after_all_lines_before_it(
    code: str, n_lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        response = answer(n_lines, ERRORS[code])

    assert response.status_code == 200
    assert response.headers["content-type"] == NDJSON
    *lines, last = response.text.splitlines()
    assert lines == [f'{{"index": {n}}}' for n in range(n_lines)]
    found = LastLine.model_validate_json(last)
    assert not found.complete
    assert found.problem is not None
    assert found.problem.code == code
    assert "secret" not in last
    status = getattr(ERRORS[code], "status", 500)
    # Refusals are a line of the log, without a traceback.
    levels = {503: [logging.WARNING], 504: [logging.WARNING], 500: [logging.ERROR]}
    assert [record.levelno for record in caplog.records] == levels.get(status, [])
    assert all(bool(record.exc_info) == (status == 500) for record in caplog.records)


def test_lines_without_an_error_are_left_alone() -> None:
    assert answer(2, None).text == '{"index": 0}\n{"index": 1}\n'
