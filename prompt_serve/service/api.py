"""The HTTP interface: FastAPI under ``/v1``, the same core behind every route."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from starlette.responses import Response

from prompt_serve import __version__
from prompt_serve.errors import NotReady
from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    ClassifyAnswer,
    Problem,
    Schema,
    ServiceInfo,
    TaskInfo,
    TaskList,
    ZeroShotTask,
)
from prompt_serve.service.bodies import read_classify_request
from prompt_serve.service.core import Core
from prompt_serve.service.problems import MEDIA_TYPE, add_problem_handlers

PROMPT_FILE_TYPE = "application/octet-stream"
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}

router = APIRouter()


class _App(FastAPI):
    """FastAPI whose OpenAPI document holds the schema that ``_problems`` refers to."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document


def create_app(core: Core | None = None) -> FastAPI:
    """The app, to be mounted at ``/v1``; its core may come later, as ``app.state.core``."""
    app = _App(
        title="prompt-serve",
        version=__version__,
        summary="Classify images by many learned tasks over one frozen CLIP.",
        openapi_url="/openapi.json",
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.core = core
    app.include_router(router)
    add_problem_handlers(app)
    return app


async def _core(request: Request) -> Core:
    # Async although it waits for nothing: FastAPI sends plain functions through a thread pool.
    core: Core | None = request.app.state.core
    if core is None:
        raise NotReady("The service is starting.", retry_after_s=1.0)
    return core


CoreOfApp = Annotated[Core, Depends(_core)]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the errors of a route."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": "Problem document", "content": content} for status in statuses}


def _body(content: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What OpenAPI says of a body that is read by hand."""
    schemas = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": schemas}}


_CLASSIFY_BODY = _body(
    {
        "multipart/form-data": {
            "type": "object",
            "required": ["image", "task"],
            "properties": {
                "image": {"type": "array", "items": _BINARY},
                "task": {"type": "array", "items": {"type": "string"}},
                "top_k": {"type": "integer", "default": DEFAULT_TOP_K},
            },
        },
        "image/*": _BINARY,
        PROMPT_FILE_TYPE: _BINARY,
    }
)


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    responses=_problems(404, 413, 422, 429, 503, 504),
    openapi_extra=_CLASSIFY_BODY
    | {
        "parameters": [
            {
                "name": "task",
                "in": "query",
                "description": "With an image as the body: the tasks.",
                "schema": {"type": "array", "items": {"type": "string"}},
            },
            {
                "name": "top_k",
                "in": "query",
                "schema": {"type": "integer", "default": DEFAULT_TOP_K},
            },
        ]
    },
)
async def classify(request: Request, core: CoreOfApp) -> Response:
    """Classify one or many images by one or many tasks.

    Either multipart/form-data with file parts `image` and fields `task` and `top_k`, or one image
    as the body with `task` and `top_k` in the query. An image that cannot be read has an `error`
    in its result; the request fails only when every image does.
    """
    wanted = await read_classify_request(request, core.settings.limits)
    return _json(await core.classify(wanted.images, wanted.tasks, wanted.top_k))


@router.get("/info", responses=_problems(503))
async def info(core: CoreOfApp) -> ServiceInfo:
    """The backbone, the execution provider that really runs, and the limits."""
    return await core.info()


@router.get("/tasks", responses=_problems(422, 503))
async def list_tasks(
    core: CoreOfApp,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str = "",
) -> TaskList:
    """Tasks in the order of their names; `next` is the `after` of the next page."""
    return await core.reading(core.tasks.page, after, limit)


@router.post(
    "/tasks",
    response_model=TaskInfo,
    status_code=201,
    responses={200: {"model": TaskInfo, "description": "Replaced"}, **_problems(422, 503)},
)
async def add_zero_shot_task(wanted: Annotated[ZeroShotTask, Body()], core: CoreOfApp) -> Response:
    """Make a task from class names and templates, with nothing learned. Replaces like PUT."""
    made, is_new = await core.add_zero_shot(wanted)
    return _json(made, status=201 if is_new else 200)


@router.put(
    "/tasks/{name}",
    response_model=TaskInfo,
    status_code=201,
    responses={200: {"model": TaskInfo, "description": "Replaced"}, **_problems(413, 422, 503)},
    openapi_extra=_body({PROMPT_FILE_TYPE: _BINARY}),
)
async def upload_task(name: str, request: Request, core: CoreOfApp) -> Response:
    """Upload a prompt file under a name. The next request gets it, from every worker."""
    uploaded, is_new = await core.upload(name, await request.body())
    return _json(uploaded, status=201 if is_new else 200)


@router.get("/tasks/{name}", responses=_problems(404, 503))
async def get_task(name: str, core: CoreOfApp) -> TaskInfo:
    """All there is to know about a task."""
    return await core.reading(core.tasks.info, name)


@router.get(
    "/tasks/{name}/file",
    response_class=Response,
    responses={200: {"content": {PROMPT_FILE_TYPE: {"schema": _BINARY}}}, **_problems(404, 503)},
)
async def get_task_file(name: str, request: Request, core: CoreOfApp) -> Response:
    """The prompt file, byte by byte as it was uploaded; its ETag is the version."""
    version, data = await core.reading(core.tasks.file, name)
    etag = f'"{version}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    disposition = f'attachment; filename="{name}.safetensors"'
    headers = {"ETag": etag, "Content-Disposition": disposition}
    return Response(data, media_type=PROMPT_FILE_TYPE, headers=headers)


@router.delete("/tasks/{name}", status_code=204, responses=_problems(404, 503))
async def delete_task(name: str, core: CoreOfApp) -> Response:
    """Remove a task. Requests that hold it finish with it."""
    await core.reading(core.tasks.delete, name)
    return Response(status_code=204)


def _json(answer: Schema, status: int = 200) -> Response:
    # Serialised by hand: FastAPI would validate an answer that was made from checked parts.
    return Response(
        answer.model_dump_json(exclude_none=True), status, media_type="application/json"
    )
