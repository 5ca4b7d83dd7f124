"""Routes that list and change tasks. The ETag of a task is its version, so a change can be
conditional: ``If-Match: "<version>"``, or ``If-None-Match: *`` to create only.
"""

import io
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response, StreamingResponse

from prompt_serve.errors import PromptServeError
from prompt_serve.schemas import (
    MAX_TAGS,
    RESERVED_NAMES,
    TASK_NAME_PATTERN,
    Alias,
    BulkReport,
    History,
    Pinned,
    Rollback,
    Tag,
    TagChanges,
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
    require_content_type,
)
from prompt_serve.service.storage.preconditions import parse_condition
from prompt_serve.service.storage.registry import TaskFilter
from prompt_serve.service.tasks import registry_export
from prompt_serve.service.tasks.bulk import import_zip, upload_zip

ZIP = "application/zip"

router = APIRouter(tags=["tasks"])


class _TaskNameConvertor(Convertor[str]):
    """Path parameter NAME or NAMESPACE/NAME; servers decode an escaped slash to a slash."""

    regex = rf"[^/]+(?:/(?!(?:{'|'.join(RESERVED_NAMES)})$)[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("task", _TaskNameConvertor())

# The pattern is part of the OpenAPI document only: the routes' own errors say more.
Name = Annotated[
    str,
    Path(
        description="Name of a task, with or without a namespace.",
        json_schema_extra={"pattern": TASK_NAME_PATTERN},
    ),
]
VersionedName = Annotated[
    str,
    Path(
        description="Name of a task, or NAME@VERSION for one version of it.",
        json_schema_extra={
            "pattern": TASK_NAME_PATTERN.removesuffix("$") + "(@[0-9a-fA-F]{8,64})?$"
        },
    ),
]
Version = Annotated[
    str,
    Path(
        description="The sha256 of a version, or its first 8 or more digits.",
        json_schema_extra={"pattern": "^[0-9a-fA-F]{8,64}$"},
    ),
]
IfMatch = Annotated[
    str | None, Header(description='Change only if the task has this ETag ("<version>").')
]
IfNoneMatch = Annotated[str | None, Header(description="*: change only if there is no such task.")]
Cursor = Annotated[str | None, Query(description="`next` of the previous page.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
AddedTags = Annotated[
    list[Tag], Query(max_length=MAX_TAGS, description="Added to the tags of the task.")
]

_REPLACED: dict[int | str, dict[str, Any]] = {200: {"model": TaskInfo, "description": "Replaced"}}


@router.get("/tasks", responses=problems(422, 503))
async def list_tasks(
    core: CoreOfApp,
    limit: Limit = 100,
    cursor: Cursor = None,
    search: Annotated[
        str, Query(description="Part of the name, a class name or the method; case is ignored.")
    ] = "",
    tag: Annotated[
        list[str],
        Query(max_length=MAX_TAGS, description="List only tasks with all of these tags."),
    ] = [],  # noqa: B006
) -> TaskList:
    """List tasks in the order of their names; `next` is the `cursor` of the next page."""
    task_filter = TaskFilter(search=search, tags=tuple(tag))
    return await core.threads.read(core.catalog.page, cursor, limit, task_filter)


@router.post(
    "/tasks",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(412, 422, 429, 503)},
)
async def add_zero_shot_task(
    definition: Annotated[ZeroShotTask, Body()],
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Create or replace a task from class names and templates, with nothing learned."""
    condition = parse_condition(if_match, if_none_match)
    task, is_new = await core.threads.change(core.store.add_zero_shot, definition, condition)
    return _task_answer(task, is_new=is_new)


@router.put(
    "/tasks",
    response_model=BulkReport,
    responses=problems(413, 422, 429, 503),
    openapi_extra=body({ZIP: BINARY, OCTETS: BINARY}),
)
async def upload_tasks(
    request: Request,
    core: CoreOfApp,
    atomic: Annotated[
        bool, Query(description="Store all files or none; otherwise each on its own.")
    ] = True,
    tag: AddedTags = [],  # noqa: B006
    namespace: Annotated[
        str, Query(description="Of all tasks: the file a.safetensors becomes NAMESPACE/a.")
    ] = "",
) -> BulkReport:
    """Upload every prompt file of a zip under its file name; existing tasks are replaced."""
    file = io.BytesIO(await request.body())
    return await core.threads.change(
        lambda: upload_zip(
            core.store,
            core.registry,
            file,
            atomic=atomic,
            max_tasks=core.settings.max_bulk_tasks,
            tags=tag,
            namespace=namespace,
        )
    )


@router.put(
    "/tasks/{name:task}",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(412, 413, 422, 429, 503)},
    openapi_extra=body({OCTETS: BINARY}),
)
async def upload_task(
    name: Name,
    request: Request,
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    tag: AddedTags = [],  # noqa: B006
) -> Response:
    """Upload a prompt file under a name. Every worker uses it from the next request on."""
    condition = parse_condition(if_match, if_none_match)
    data = await request.body()
    task, is_new = await core.threads.change(core.store.upload, name, data, condition, tag)
    return _task_answer(task, is_new=is_new)


@router.get("/tasks/{name:task}", response_model=TaskInfo, responses=problems(404, 422, 503))
async def get_task(name: VersionedName, core: CoreOfApp) -> Response:
    """Return all details of a task, or of one version of it (`name@sha`)."""
    return _task_answer(await core.threads.read(core.catalog.info, name))


@router.get(
    "/tasks/{name:task}/file",
    response_class=Response,
    responses={
        200: {"content": {OCTETS: {"schema": BINARY}}},
        304: {"description": "The caller has this version"},
        **problems(404, 422, 503),
    },
)
async def get_task_file(
    name: VersionedName,
    core: CoreOfApp,
    if_none_match: Annotated[
        str | None, Header(description="ETags that the caller has; 304 if the file's is one.")
    ] = None,
) -> Response:
    """Download the prompt file, byte for byte as it was uploaded; its ETag is the version."""
    version, data = await core.threads.read(core.catalog.file, name)
    etag = f'"{version}"'
    if etag in (if_none_match or ""):
        return Response(status_code=304, headers={"ETag": etag})
    disposition = f'attachment; filename="{name.rpartition("/")[2]}.safetensors"'
    headers = {"ETag": etag, "Content-Disposition": disposition}
    return Response(data, media_type=OCTETS, headers=headers)


@router.get("/tasks/{name:task}/history", responses=problems(404, 422, 503))
async def get_history(
    name: Name, core: CoreOfApp, limit: Limit = 100, cursor: Cursor = None
) -> History:
    """List the changes of a name, newest first: author, time, kind and version."""
    return await core.threads.read(core.catalog.history, name, cursor, limit)


@router.post(
    "/tasks/{name:task}/rollback",
    response_model=TaskInfo,
    responses=problems(404, 412, 422, 429, 503),
)
async def roll_back_task(
    name: Name, core: CoreOfApp, target: Rollback | None = None, if_match: IfMatch = None
) -> Response:
    """Point a task at its previous version or another of its history; restore a deleted task."""
    condition = parse_condition(if_match, None)
    to = None if target is None else target.version
    return _task_answer(await core.threads.change(core.editor.rollback, name, to, condition))


@router.put(
    "/tasks/{name:task}/alias",
    response_model=TaskInfo,
    status_code=201,
    responses={**_REPLACED, **problems(404, 412, 422, 429, 503)},
)
async def alias_task(
    name: Name,
    target: Annotated[Alias, Body()],
    core: CoreOfApp,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Point a name at the current version of another task; later changes of that do not follow."""
    condition = parse_condition(if_match, if_none_match)
    task, is_new = await core.threads.change(core.editor.alias, name, target.of, condition)
    return _task_answer(task, is_new=is_new)


@router.put(
    "/tasks/{name:task}/tags", response_model=TaskInfo, responses=problems(404, 422, 429, 503)
)
async def set_tags(name: Name, tags: Annotated[Tags, Body()], core: CoreOfApp) -> Response:
    """Replace the tags of a task."""
    return _task_answer(await core.threads.change(core.editor.set_tags, name, tags.tags))


@router.patch(
    "/tasks/{name:task}/tags", response_model=TaskInfo, responses=problems(404, 422, 429, 503)
)
async def edit_tags(
    name: Name, changes: Annotated[TagChanges, Body()], core: CoreOfApp
) -> Response:
    """Add and remove tags of a task; the others stay."""
    return _task_answer(await core.threads.change(core.editor.edit_tags, name, changes))


@router.put(
    "/tasks/{name:task}/pinned", response_model=TaskInfo, responses=problems(404, 422, 429, 503)
)
async def set_pinned(name: Name, state: Annotated[Pinned, Body()], core: CoreOfApp) -> Response:
    """Pin a task, which keeps it in memory, also after a restart; or unpin it."""
    return _task_answer(await core.threads.change(core.editor.set_pinned, name, state.pinned))


@router.delete("/tasks/{name:task}", status_code=204, responses=problems(404, 412, 422, 429, 503))
async def delete_task(name: Name, core: CoreOfApp, if_match: IfMatch = None) -> Response:
    """Delete a task. Running requests finish with it; a rollback restores it."""
    await core.threads.change(core.editor.delete, name, parse_condition(if_match, None))
    return Response(status_code=204)


@router.delete("/versions/{version}", status_code=204, responses=problems(404, 409, 422, 429, 503))
async def delete_version(version: Version, core: CoreOfApp) -> Response:
    """Delete a prompt file permanently, by its sha256 or first digits; no task may point at it."""
    await core.threads.change(core.editor.delete_version, version)
    return Response(status_code=204)


@router.get(
    "/registry/export",
    response_class=Response,
    responses={200: {"content": {ZIP: {"schema": BINARY}}}, **problems(503)},
)
async def export_registry(core: CoreOfApp) -> Response:
    """Export all tasks with their prompt files and tags as a zip; import it elsewhere."""
    chunks = registry_export.export_registry(core.registry)
    # Read before the answer starts, so that an outage is a 503 and not a truncated zip.
    first = await core.threads.read(next, chunks, b"")

    async def stream() -> Any:
        chunk: bytes | None = first
        while chunk is not None:
            yield chunk
            try:
                chunk = await core.threads.read(next, chunks, None)
            except PromptServeError as error:
                # The status is sent already: closing the connection leaves the zip truncated.
                raise ConnectionAbortedError(error.message) from error

    headers = {"Content-Disposition": 'attachment; filename="registry.zip"'}
    return StreamingResponse(stream(), media_type=ZIP, headers=headers)


@router.post(
    "/registry/import",
    response_model=BulkReport,
    responses=problems(413, 422, 429, 503),
    openapi_extra=body({ZIP: BINARY, OCTETS: BINARY}),
    dependencies=[require_content_type(ZIP, OCTETS)],
)
async def import_registry(request: Request, core: CoreOfApp) -> BulkReport:
    """Import all tasks of an exported registry, or none; tasks with the same names are replaced."""
    file = io.BytesIO(await request.body())
    return await core.threads.change(import_zip, core.registry, file, core.store.prepare)


def _task_answer(task: TaskInfo, *, is_new: bool = False) -> Response:
    answer = json_answer(task, status=201 if is_new else 200)
    answer.headers["ETag"] = f'"{task.version}"'
    return answer
