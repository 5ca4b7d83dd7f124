"""Unexpected errors and those of the web framework as problem documents."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from prompt_serve.errors import PromptServeError, RequestInvalid, TaskNotFound, VersionInUse
from prompt_serve.service.problems import MEDIA_TYPE, add_problem_handlers, problem_of


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/unexpected")
    async def unexpected() -> None:
        raise RuntimeError("a secret of the code")

    @app.get("/framework")
    async def framework() -> None:
        raise HTTPException(400, "no such thing")

    @app.get("/cut-off/{after}")
    async def cut_off(after: int) -> StreamingResponse:
        async def stream() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"some"
            raise ConnectionAbortedError("no more of it")

        return StreamingResponse(stream())

    @app.get("/aborted")
    async def aborted() -> None:
        raise ConnectionAbortedError("a socket of its own")

    add_problem_handlers(app)
    return app


def _get(app: FastAPI, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_an_unexpected_error_is_an_internal_error_without_its_reason(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    answer = _get(app, "/unexpected")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["code"] == "internal-error"
    assert "secret" not in answer.text
    assert "a secret of the code" in caplog.text


@pytest.mark.parametrize("after", [0, 1, 2, 5, 50])
def test_an_answer_that_cannot_be_completed_is_a_line_of_the_log(
    app: FastAPI, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": f"/cut-off/{after}",
        "headers": [],
        "query_string": b"",
        "asgi": {"spec_version": "2.3"},
    }
    asyncio.run(app(scope, receive, send))

    assert [one.get("body") for one in sent] == [None, *[b"some"] * after]
    assert all(one.get("more_body", True) for one in sent)  # so that the server closes
    [record] = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "no more of it" in record.getMessage()


def test_an_aborted_connection_of_its_own_is_an_unexpected_error(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    assert _get(app, "/aborted").json()["code"] == "internal-error"
    assert "a socket of its own" in caplog.text


def test_what_the_framework_refuses_is_a_request_error(app: FastAPI) -> None:
    answer = _get(app, "/framework")

    assert (answer.status_code, answer.json()["code"]) == (400, "request-error")
    assert answer.json()["detail"] == "no such thing"


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "error",
    [
        RequestInvalid(f"The body is invalid: {LONG}"),
        TaskNotFound("No such task.", name=LONG, loaded=()),
        TaskNotFound("No such task.", name="a", loaded=(LONG, LONG)),
        VersionInUse("Some point at it.", version=LONG, names=("a", LONG)),
        RequestInvalid(LONG, errors=[{"name": LONG, "error": {"detail": LONG}}]),
    ],
)
def test_a_problem_does_not_repeat_long_texts(error: PromptServeError) -> None:
    document = problem_of(error).model_dump_json()

    assert len(document) < 15_000
    assert "xxx..." in document
