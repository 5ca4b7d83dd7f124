"""Errors as problem documents (RFC 9457): ``application/problem+json`` with a stable ``code``."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import PromptServeError
from prompt_serve.schemas import Problem
from prompt_serve.service.request_context import current_request

MEDIA_TYPE = "application/problem+json"
_MAX_DETAIL, _MAX_TEXT = 10_000, 500  # characters: answers do not repeat what they were sent
_REFUSALS = (503, 504)  # the service cannot now, or not in the time that the caller gave it
_CODES_OF_STATUS = {404: "not-found", 405: "method-not-allowed"}

_log = logging.getLogger(__name__)


def problem_of(error: PromptServeError) -> Problem:
    """Return the problem document of an error; facts that JSON can represent are extra members."""
    return _problem(error.status, error.code, error.message, error.facts)


def logged_problem(error: Exception) -> Problem:
    """Return the problem document of any error with the request's id; log it if the service is at
    fault."""
    if not isinstance(error, PromptServeError):
        _log.error("an answer failed", exc_info=error)
        return _with_request_id(_unexpected())
    if error.status in _REFUSALS:
        reason = "" if error.__cause__ is None else f" ({error.__cause__!r:.500})"
        _log.warning("%s: %s%s", error.code, error.message, reason)
    elif error.status >= 500:
        _log.error("%s: %s", error.code, error.message, exc_info=error)
    return _with_request_id(problem_of(error))


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return an HTTP response with ``problem``, the request's id, and any ``retry_after_s`` as
    Retry-After."""
    extra = dict(headers or {})
    problem = _with_request_id(problem)
    wait_s = (problem.model_extra or {}).get("retry_after_s")
    if isinstance(wait_s, int | float):
        extra["Retry-After"] = str(max(1, math.ceil(wait_s)))
    return Response(problem.model_dump_json(), problem.status, media_type=MEDIA_TYPE, headers=extra)


def add_problem_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error with a problem document."""
    app.add_exception_handler(PromptServeError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(UnexpectedErrorMiddleware)


class UnexpectedErrorMiddleware:
    """ASGI middleware: unexpected errors get 500 ``internal-error``; only the log says why.

    An app that cannot complete an answer which has begun raises ConnectionAbortedError; the server
    closes the connection of an answer that is not complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except ClientDisconnect:
            return  # there is no client to answer
        # Anything that no handler caught is a bug; the client still gets an answer.
        except Exception as error:
            if started and isinstance(error, ConnectionAbortedError):
                _log.warning("%s %s was cut off: %s", scope["method"], scope["path"], error)
                return
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                await problem_response(_unexpected())(scope, receive, send)


async def _on_own_error(_: Request, error: Exception) -> Response:
    return problem_response(logged_problem(error))


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (the registration says so)
    errors = [
        {"where": _cut(".".join(map(str, one["loc"])), _MAX_TEXT), "what": one["msg"]}
        for one in error.errors()[:20]
    ]
    detail = "; ".join(f"{one['where']}: {one['what']}" for one in errors)
    return problem_response(_problem(422, "request-invalid", detail, {"errors": errors}))


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (the registration says so)
    if isinstance(error.__cause__, UnicodeDecodeError | RecursionError):  # FastAPI's parsing
        detail = f"The JSON body is invalid: {error.__cause__}"
        return problem_response(_problem(422, "request-invalid", detail))
    code = _CODES_OF_STATUS.get(error.status_code, "request-error")
    return problem_response(_problem(error.status_code, code, error.detail), error.headers)


def _with_request_id(problem: Problem) -> Problem:
    request_id = current_request().request_id
    return problem.model_copy(update={"request_id": request_id}) if request_id else problem


def _unexpected() -> Problem:
    detail = "The service failed unexpectedly; its log has the reason."
    return _problem(500, PromptServeError.code, detail)


def _problem(
    status: int, code: str, detail: str, facts: Mapping[str, object] | None = None
) -> Problem:
    members = {
        name: value
        for name, fact in (facts or {}).items()
        if name not in Problem.model_fields and (value := _to_json(fact)) is not None
    }
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_cut(detail, _MAX_DETAIL),
        code=code,
        **members,
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _to_json(fact: object) -> object | None:
    """Convert a fact to JSON's types; None if it has none (a path, an array, an exception)."""
    if isinstance(fact, str):
        return _cut(fact, _MAX_TEXT)
    if isinstance(fact, bool | int) or (isinstance(fact, float) and math.isfinite(fact)):
        return fact
    if isinstance(fact, list | tuple):
        return [_to_json(item) for item in fact]
    if isinstance(fact, dict):
        return {str(key): _to_json(value) for key, value in fact.items()}
    return None
