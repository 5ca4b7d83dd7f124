"""Routes that list and change tasks. The ETag of a task is its version, so a change can be made
dependent on what it was decided on: ``If-Match: "<version>"``, or ``If-None-Match: *`` to create.
"""

import io
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from prompt_serve.errors import PromptServeError
from prompt_serve.schemas import (
    Alias,
    BulkReport,
    History,
    Pinned,
    Rollback,
    Tags,
    TaskInfo,
    TaskList,
    ZeroShotTask,
)
from prompt_serve.service.http.dependencies import (
    BINARY,
    OCTETS,
    CoreOfApp,
    body,
    json_answer,
    problems,
)
from prompt_serve.service.storage.preconditions import condition_of
from prompt_serve.service.storage.registry import TaskFilter
from prompt_serve.service.tasks.bulk import import_zip, upload_zip
from prompt_serve.service.tasks.registry_export import exported

ZIP = "application/zip"

router = APIRouter()

IfMatch = Annotated[str | None, Header(description='Only if the task has this ETag ("<version>").')]
IfNoneMatch = Annotated[str | None, Header(description="*: only if there is no such task.")]
Cursor = Annotated[str | None, Query(description="The `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]

_REPLACED: dict[int | str, dict[str, Any]] = {200: {"model": TaskInfo, "description": "Replaced"}}


@router.get("/tasks", responses=problems(422, 503))
async def list_tasks(
    core: CoreOfApp,
    limit: Limit = 100,
    cursor: Cursor = None,
    search: Annotated[
        str, Query(description="Part of the name, of a class name or of the method; any case.")
    ] = "",
    tag: Annotated[list[str], Query(description="Tasks with all of these tags.")] = [],  # noqa: B006
) -> TaskList:
    """Tasks in the order of their names; `next` is the `cursor` of the next page."""
    wanted = TaskFilter(search=search, tags=tuple(tag))
    return await core.reading(core.tasks.page, cursor, limit, wanted)


@router.post(
    "/tasks",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(412, 422, 429, 503)},
)
async def add_zero_shot_task(
    wanted: Annotated[ZeroShotTask, Body()],
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Make a task from class names and templates, with nothing learned. Replaces like PUT."""
    condition = condition_of(if_match, if_none_match)
    made, is_new = await core.changing(core.tasks.add_zero_shot, wanted, condition)
    return _task_answer(made, is_new=is_new)


@router.put(
    "/tasks",
    response_model=BulkReport,
    responses=problems(413, 422, 429, 503),
    openapi_extra=body({ZIP: BINARY}),
)
async def upload_tasks(
    request: Request,
    core: CoreOfApp,
    atomic: Annotated[
        bool, Query(description="All files or none; otherwise each for itself.")
    ] = True,
) -> BulkReport:
    """Serve every prompt file of a zip under its file's name; tasks of these names are replaced."""
    file = io.BytesIO(await request.body())
    return await core.changing(
        lambda: upload_zip(
            core.tasks,
            core.registry,
            file,
            atomic=atomic,
            max_tasks=core.settings.max_bulk_tasks,
        )
    )


@router.put(
    "/tasks/{name}",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(412, 413, 422, 429, 503)},
    openapi_extra=body({OCTETS: BINARY}),
)
async def upload_task(
    name: str,
    request: Request,
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Upload a prompt file under a name. The next request gets it, from every worker."""
    condition = condition_of(if_match, if_none_match)
    data = await request.body()
    uploaded, is_new = await core.changing(core.tasks.upload, name, data, condition)
    return _task_answer(uploaded, is_new=is_new)


@router.get("/tasks/{name}", response_model=TaskInfo, responses=problems(404, 422, 503))
async def get_task(name: str, core: CoreOfApp) -> Response:
    """All there is to know about a task, or about one version of it (`name@sha`)."""
    return _task_answer(await core.reading(core.tasks.info, name))


@router.get(
    "/tasks/{name}/file",
    response_class=Response,
    responses={200: {"content": {OCTETS: {"schema": BINARY}}}, **problems(404, 422, 503)},
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


@router.get("/tasks/{name}/history", responses=problems(404, 422, 503))
async def get_history(
    name: str, core: CoreOfApp, limit: Limit = 100, cursor: Cursor = None
) -> History:
    """What a name pointed at, newest first: who changed it, when, how, and to which version."""
    return await core.reading(core.tasks.history, name, cursor, limit)


@router.post(
    "/tasks/{name}/rollback",
    response_model=TaskInfo,
    responses=problems(404, 412, 422, 429, 503),
)
async def roll_back_task(
    name: str, core: CoreOfApp, wanted: Rollback | None = None, if_match: IfMatch = None
) -> Response:
    """Point a task at the version before, or at one of its history; bring a deleted one back."""
    condition = condition_of(if_match, None)
    to = None if wanted is None else wanted.version
    return _task_answer(await core.changing(core.tasks.rollback, name, to, condition))


@router.put(
    "/tasks/{name}/alias",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(404, 412, 422, 429, 503)},
)
async def alias_task(
    name: str,
    wanted: Annotated[Alias, Body()],
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Point a name at the version that another task is at now; later they go their own ways."""
    condition = condition_of(if_match, if_none_match)
    task, is_new = await core.changing(core.tasks.alias, name, wanted.of, condition)
    return _task_answer(task, is_new=is_new)


@router.put("/tasks/{name}/tags", response_model=TaskInfo, responses=problems(404, 422, 429, 503))
async def set_tags(name: str, wanted: Annotated[Tags, Body()], core: CoreOfApp) -> Response:
    """Replace the tags of a task."""
    return _task_answer(await core.changing(core.tasks.set_tags, name, wanted.tags))


@router.put("/tasks/{name}/pinned", response_model=TaskInfo, responses=problems(404, 422, 429, 503))
async def set_pinned(name: str, wanted: Annotated[Pinned, Body()], core: CoreOfApp) -> Response:
    """Keep a task in the service's memory from now on, also after a restart; or no longer."""
    return _task_answer(await core.changing(core.tasks.set_pinned, name, wanted.pinned))


@router.delete("/tasks/{name}", status_code=204, responses=problems(404, 412, 422, 429, 503))
async def delete_task(name: str, core: CoreOfApp, if_match: IfMatch = None) -> Response:
    """Remove a task. Requests that hold it finish with it; a rollback brings it back."""
    await core.changing(core.tasks.delete, name, condition_of(if_match, None))
    return Response(status_code=204)


@router.delete("/versions/{version}", status_code=204, responses=problems(404, 409, 422, 429, 503))
async def delete_version(version: str, core: CoreOfApp) -> Response:
    """Remove a prompt file for good, by its sha256 or the first digits; no task may be at it."""
    await core.changing(core.tasks.delete_version, version)
    return Response(status_code=204)


@router.get(
    "/registry/export",
    response_class=Response,
    responses={200: {"content": {ZIP: {"schema": BINARY}}}, **problems(503)},
)
async def export_registry(core: CoreOfApp) -> Response:
    """All tasks with their prompt files and tags, as a zip; an import elsewhere restores them."""
    chunks = exported(core.registry)
    first = await core.reading(next, chunks, b"")  # an outage is still a 503, not a broken zip

    async def stream() -> Any:
        chunk: bytes | None = first
        while chunk is not None:
            yield chunk
            try:
                chunk = await core.reading(next, chunks, None)
            except PromptServeError as error:
                # Too late for an answer of its own: the connection ends without the zip's end.
                raise ConnectionAbortedError(error.message) from error

    headers = {"Content-Disposition": 'attachment; filename="registry.zip"'}
    return StreamingResponse(stream(), media_type=ZIP, headers=headers)


@router.post(
    "/registry/import",
    response_model=BulkReport,
    responses=problems(413, 422, 429, 503),
    openapi_extra=body({ZIP: BINARY}),
)
async def import_registry(request: Request, core: CoreOfApp) -> BulkReport:
    """Take over all tasks of an exported registry: all or none; the same names are replaced."""
    file = io.BytesIO(await request.body())
    return await core.changing(import_zip, core.registry, file, core.tasks.checked)


def _task_answer(task: TaskInfo, *, is_new: bool = False) -> Response:
    answer = json_answer(task, status=201 if is_new else 200)
    answer.headers["ETag"] = f'"{task.version}"'
    return answer
