"""The HTTP interface: FastAPI under ``/v1``, the same core behind every route."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Query, Request
from starlette.responses import Response

from prompt_serve import __version__
from prompt_serve.schemas import (
    Problem,
    ServiceInfo,
    TaskInfo,
    TaskList,
    ZeroShotTask,
)
from prompt_serve.service import inference_routes, page
from prompt_serve.service.core import Core
from prompt_serve.service.problems import add_problem_handlers
from prompt_serve.service.routing import BINARY, OCTETS, CoreOfApp, body, json_answer, problems

router = APIRouter()


class _App(FastAPI):
    """FastAPI whose OpenAPI document holds the schema that ``problems`` refers to."""

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
        docs_url=None,  # page has its own, without another host
        redoc_url=None,
    )
    app.state.core = core
    app.include_router(inference_routes.router)
    app.include_router(page.router)
    app.include_router(router)
    add_problem_handlers(app)
    return app


@router.get("/info", responses=problems(503))
async def info(core: CoreOfApp) -> ServiceInfo:
    """The backbone, the execution provider that really runs, and the limits."""
    return await core.info()


@router.get("/tasks", responses=problems(422, 503))
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
    responses={200: {"model": TaskInfo, "description": "Replaced"}, **problems(422, 503)},
)
async def add_zero_shot_task(wanted: Annotated[ZeroShotTask, Body()], core: CoreOfApp) -> Response:
    """Make a task from class names and templates, with nothing learned. Replaces like PUT."""
    made, is_new = await core.add_zero_shot(wanted)
    return json_answer(made, status=201 if is_new else 200)


@router.put(
    "/tasks/{name}",
    response_model=TaskInfo,
    status_code=201,
    responses={200: {"model": TaskInfo, "description": "Replaced"}, **problems(413, 422, 503)},
    openapi_extra=body({OCTETS: BINARY}),
)
async def upload_task(name: str, request: Request, core: CoreOfApp) -> Response:
    """Upload a prompt file under a name. The next request gets it, from every worker."""
    uploaded, is_new = await core.upload(name, await request.body())
    return json_answer(uploaded, status=201 if is_new else 200)


@router.get("/tasks/{name}", responses=problems(404, 503))
async def get_task(name: str, core: CoreOfApp) -> TaskInfo:
    """All there is to know about a task."""
    return await core.reading(core.tasks.info, name)


@router.get(
    "/tasks/{name}/file",
    response_class=Response,
    responses={200: {"content": {OCTETS: {"schema": BINARY}}}, **problems(404, 503)},
)
async def get_task_file(name: str, request: Request, core: CoreOfApp) -> Response:
    """The prompt file, byte by byte as it was uploaded; its ETag is the version."""
    version, data = await core.reading(core.tasks.file, name)
    etag = f'"{version}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    disposition = f'attachment; filename="{name}.safetensors"'
    headers = {"ETag": etag, "Content-Disposition": disposition}
    return Response(data, media_type=OCTETS, headers=headers)


@router.delete("/tasks/{name}", status_code=204, responses=problems(404, 503))
async def delete_task(name: str, core: CoreOfApp) -> Response:
    """Remove a task. Requests that hold it finish with it."""
    await core.reading(core.tasks.delete, name)
    return Response(status_code=204)
