"""Parts that all routes share: the core, and OpenAPI descriptions of bodies and errors."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from prompt_serve.errors import NotReady, RequestInvalid
from prompt_serve.schemas import Schema
from prompt_serve.service.core import Core
from prompt_serve.service.problems import MEDIA_TYPE

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
OCTETS = "application/octet-stream"

_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}}}
_HEADERS = {401: _CHALLENGE, 403: _CHALLENGE, 429: _RETRY, 503: _RETRY}


async def get_core(request: Request) -> Core:
    """Return the core of the request's app; raise NotReady while the service starts."""
    # Async although it awaits nothing: FastAPI runs plain functions in a thread pool.
    core: Core | None = request.app.state.core
    if core is None:
        raise NotReady("The service is starting.", retry_after_s=1.0)
    return core


CoreOfApp = Annotated[Core, Depends(get_core)]


def content_type(request: Request) -> str:
    """Return the content type of a request in lower case, without parameters; "" if it has none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def require_content_type(*kinds: str) -> Any:
    """Return a dependency that refuses bodies of other types, and of none.

    Needed where a POST takes bytes: browsers send such bodies for any page, as text or untyped.
    """

    async def check(request: Request) -> None:
        if content_type(request) not in kinds:
            raise RequestInvalid(
                f"The content type is {content_type(request)[:100]!r}; expected "
                f"{' or '.join(kinds)}."
            )

    return Depends(check)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's errors."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status in statuses
    }


def body(content: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the route parses itself."""
    schemas = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": schemas}}


def json_answer(answer: Schema, status: int = 200, *, exclude_none: bool = True) -> Response:
    """Serialize an answer directly: FastAPI would validate it once more."""
    return Response(
        answer.model_dump_json(exclude_none=exclude_none), status, media_type="application/json"
    )
