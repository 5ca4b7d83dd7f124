"""What the routes of all files share: the core behind them, and how OpenAPI is told of bodies."""

from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from prompt_serve.errors import NotReady
from prompt_serve.schemas import Schema
from prompt_serve.service.core import Core
from prompt_serve.service.problems import MEDIA_TYPE

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
OCTETS = "application/octet-stream"


async def core_of(request: Request) -> Core:
    """The core of the app that a request came to; NotReady before there is one."""
    # Async although it waits for nothing: FastAPI sends plain functions through a thread pool.
    core: Core | None = request.app.state.core
    if core is None:
        raise NotReady("The service is starting.", retry_after_s=1.0)
    return core


CoreOfApp = Annotated[Core, Depends(core_of)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the errors of a route."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": "Problem document", "content": content} for status in statuses}


def body(content: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What OpenAPI says of a body that is read by hand."""
    schemas = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": schemas}}


def json_answer(answer: Schema, status: int = 200) -> Response:
    """Serialized by hand: FastAPI would validate an answer that was made from checked parts."""
    return Response(
        answer.model_dump_json(exclude_none=True), status, media_type="application/json"
    )
