"""Task calls of ``AsyncClient``: list, upload and edit tasks, versions and whole registries."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from prompt_serve.client import wire
from prompt_serve.client.connection import Connection, Reply
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.uploads import PromptSource, prompt_to_upload, zip_of
from prompt_serve.client.wire import Call
from prompt_serve.errors import TaskNameInvalid, TaskNotFound, VersionChanged, VersionNotFound
from prompt_serve.prompts.prompt_file import version_of
from prompt_serve.schemas import (
    DEFAULT_TEMPLATE,
    BulkReport,
    Change,
    History,
    TaskInfo,
    TaskList,
    TaskSummary,
    is_reserved_name,
)

PAGE_SIZE = 100
_OCTETS = {"Content-Type": "application/octet-stream"}
_ZIP = {"Content-Type": "application/zip"}

Message = TypeVar("Message", bound=BaseModel)


class TaskCalls:
    """Calls that list and edit tasks; all of them are safe to repeat.

    Edits can be conditional: if the task is not at the version ``expected``, VersionChanged is
    raised and nothing changes. Every call raises the errors of ``Connection.send`` and those that
    the service returns, such as TaskNotFound, NotAuthenticated and NotAllowed.
    """

    _connection: Connection
    _retry: RetryPolicy

    async def upload(
        self,
        file: PromptSource,
        name: str | None = None,
        *,
        expected: str | None = None,
        new: bool = False,
        tags: Sequence[str] = (),
    ) -> TaskInfo:
        """Upload a prompt and serve it as a task; an existing task of that name is replaced.

        Args:
            file: path of a prompt file, its bytes, or a Prompt.
            name: name of the task; by default that of the file without its suffix, or of bytes
                and Prompts the name that the prompt holds.
            expected: version that the task must be at.
            new: fail if a task of that name exists.
            tags: added to the tags of the task.

        Raises:
            PromptFileInvalid, BackboneMismatch, ProbeMismatch: the prompt cannot be served.
            RequestInvalid: no name was given and the prompt has none.
            VersionChanged: the task is not at ``expected``, or exists although ``new`` is set.
        """
        task, data = await asyncio.to_thread(prompt_to_upload, file, name)
        headers = {**_OCTETS, **_preconditions(expected, new=new)}
        arguments = {"content": data, "headers": headers, "params": {"tag": list(tags)}}
        reply = await self._send(Call("PUT", _path(task), arguments))
        try:
            return wire.read_answer(reply.response, TaskInfo)
        except VersionChanged as error:
            # An earlier attempt may have succeeded although its response was lost.
            if not reply.repeated or error.current != version_of(data):
                raise
        return await self.task(task)

    async def upload_many(
        self,
        source: str | Path,
        *,
        atomic: bool = True,
        tags: Sequence[str] = (),
        namespace: str = "",
    ) -> BulkReport:
        """Upload every prompt file of a folder or zip; tasks are named after the files.

        Args:
            source: folder with ``.safetensors`` files, or a zip of them.
            atomic: upload all files, or none if one of them cannot be served. Otherwise upload
                those that can be served, and report the others as items with an ``error``.
            tags: added to the tags of every task.
            namespace: of the names of all tasks; empty: none.

        Raises:
            ArchiveInvalid: not a zip or folder of prompt files; with ``atomic``, also if a file
                cannot be served (``errors`` lists them).
        """
        data = await asyncio.to_thread(zip_of, Path(source))
        params: dict[str, Any] = {"atomic": "true" if atomic else "false", "tag": list(tags)}
        params |= {"namespace": namespace} if namespace else {}
        arguments = {"content": data, "headers": _ZIP, "params": params}
        return await self._fetch(Call("PUT", "/v1/tasks", arguments), BulkReport)

    async def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
        *,
        tags: Sequence[str] = (),
    ) -> TaskInfo:
        """Create a zero-shot task from class names.

        Args:
            name: name of the task.
            class_names: names of the classes.
            templates: sentences with ``{}`` for the class name; their text features are averaged.
            tags: added to the tags of the task.
        """
        body = {"name": name, "class_names": list(class_names), "templates": list(templates)}
        body |= {"tags": list(tags)} if tags else {}  # services of before know no tags here
        return await self._fetch(Call("POST", "/v1/tasks", {"json": body}), TaskInfo)

    async def tasks(
        self, *, search: str = "", tags: Sequence[str] = ()
    ) -> AsyncIterator[TaskSummary]:
        """Iterate over tasks, sorted by name and fetched page by page.

        Args:
            search: part of the task name, of a class name or of the method, in any case.
            tags: only tasks that have all of these tags.
        """
        cursor: str | None = None
        while True:
            page = await self.tasks_page(cursor, search=search, tags=tags)
            for task in page.tasks:
                yield task
            if page.next is None:
                return
            cursor = page.next

    async def tasks_page(
        self,
        cursor: str | None = None,
        limit: int = PAGE_SIZE,
        *,
        search: str = "",
        tags: Sequence[str] = (),
    ) -> TaskList:
        """Return one page of tasks; its ``next`` is the ``cursor`` of the following page."""
        params: dict[str, Any] = {"limit": str(limit), "tag": list(tags)}
        params |= {"cursor": cursor} if cursor is not None else {}
        params |= {"search": search} if search else {}
        return await self._fetch(Call("GET", "/v1/tasks", {"params": params}), TaskList)

    async def task(self, name: str) -> TaskInfo:
        """Return the details of a task, or of one version of it (``name@sha``).

        Raises:
            TaskNotFound, VersionNotFound: unknown task or version.
        """
        return await self._fetch(Call("GET", _path(name)), TaskInfo)

    async def download(self, name: str) -> bytes:
        """Return the prompt file of a task, or of one version of it (``name@sha``)."""
        reply = await self._send(Call("GET", _path(name) + "/file"))
        wire.raise_for_error(reply.response)
        return reply.response.content

    async def history(self, name: str) -> AsyncIterator[Change]:
        """Iterate over the changes of a task, newest first: time, kind, version and author."""
        cursor: str | None = None
        while True:
            page = await self.history_page(name, cursor)
            for change in page.changes:
                yield change
            if page.next is None:
                return
            cursor = page.next

    async def history_page(self, name: str, cursor: str | None = None) -> History:
        """Return one page of ``history``; its ``next`` is the ``cursor`` of the following page."""
        params = {"limit": str(PAGE_SIZE)} | ({} if cursor is None else {"cursor": cursor})
        return await self._fetch(Call("GET", _path(name) + "/history", {"params": params}), History)

    async def rollback(
        self, name: str, version: str | None = None, *, expected: str | None = None
    ) -> TaskInfo:
        """Serve an earlier version of a task again, or restore a deleted task.

        Args:
            name: name of the task.
            version: version from its history, or at least the first 8 digits of one; None for
                the previous version.
            expected: version that the task must be at; by default its current version, so that
                a repeated attempt does not roll back twice.

        Raises:
            VersionNotFound, VersionAmbiguous: no version, or several, begin like ``version``.
            VersionChanged: the task is not at ``expected``.
        """
        current = expected if expected is not None else await self._current_version(name)
        body = {} if version is None else {"version": version}
        arguments = {"json": body, "headers": _preconditions(current)}
        reply = await self._send(Call("POST", _path(name) + "/rollback", arguments))
        try:
            return wire.read_answer(reply.response, TaskInfo)
        except VersionChanged:
            if not reply.repeated:
                raise
            [last, *_] = (await self.history_page(name)).changes
            if last.what != "rollback" or last.previous != current:
                raise
        return await self.task(name)

    async def alias(self, name: str, of: str) -> TaskInfo:
        """Point ``name`` at the current version of the task ``of``, or at ``of@sha``."""
        return await self._fetch(
            Call("PUT", _path(name) + "/alias", {"json": {"of": of}}), TaskInfo
        )

    async def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        """Replace the tags of a task."""
        body = {"tags": list(tags)}
        return await self._fetch(Call("PUT", _path(name) + "/tags", {"json": body}), TaskInfo)

    async def edit_tags(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> TaskInfo:
        """Add and remove tags of a task in one step; its other tags stay."""
        body = {"add": list(add), "remove": list(remove)}
        return await self._fetch(Call("PATCH", _path(name) + "/tags", {"json": body}), TaskInfo)

    async def set_pinned(self, name: str, pinned: bool = True) -> TaskInfo:
        """Pin a task, which keeps it in the service's memory, or unpin it."""
        body = {"pinned": pinned}
        return await self._fetch(Call("PUT", _path(name) + "/pinned", {"json": body}), TaskInfo)

    async def delete(self, name: str, *, expected: str | None = None) -> None:
        """Delete a task; ``rollback`` restores it.

        Args:
            name: name of the task.
            expected: version that the task must be at.

        Raises:
            TaskNotFound: there is no such task.
            VersionChanged: the task is not at ``expected``.
        """
        call = Call("DELETE", _path(name), {"headers": _preconditions(expected)})
        reply = await self._send(call)
        try:
            wire.raise_for_error(reply.response)
        except (TaskNotFound, VersionChanged) as error:
            # An earlier attempt may have succeeded although its response was lost.
            gone = not isinstance(error, VersionChanged) or error.current == "none"
            if not (reply.repeated and gone):
                raise

    async def delete_version(self, version: str) -> None:
        """Delete the prompt file of a version for good.

        Raises:
            VersionInUse: a task is at this version.
            VersionNotFound: there is no such version.
        """
        reply = await self._send(Call("DELETE", f"/v1/versions/{quote(version, safe='')}"))
        try:
            wire.raise_for_error(reply.response)
        except VersionNotFound:
            if not reply.repeated:
                raise

    async def export_registry(self) -> bytes:
        """Return a zip of all tasks with their prompt files and tags."""
        reply = await self._send(Call("GET", "/v1/registry/export"))
        wire.raise_for_error(reply.response)
        return reply.response.content

    async def import_registry(self, data: bytes) -> BulkReport:
        """Import all tasks of an exported registry; existing tasks of the same names are replaced.

        Raises:
            ArchiveInvalid: not an exported registry, or a task cannot be served; nothing changes.
        """
        arguments = {"content": data, "headers": _ZIP}
        return await self._fetch(Call("POST", "/v1/registry/import", arguments), BulkReport)

    async def _current_version(self, name: str) -> str | None:
        try:
            return (await self.task(name)).version
        except TaskNotFound:
            return None  # deleted, so there is no version to compare with

    async def _send(self, call: Call) -> Reply:
        return await self._connection.send(call, self._retry)

    async def _fetch(self, call: Call, message: type[Message]) -> Message:
        return wire.read_answer((await self._send(call)).response, message)


def _preconditions(expected: str | None, *, new: bool = False) -> dict[str, str]:
    headers = {} if expected is None else {"If-Match": f'"{expected}"'}
    return headers | ({"If-None-Match": "*"} if new else {})


def _path(name: str) -> str:
    # Such a name would be another path. All other names are the service's to judge.
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or len(parts) > 2 or is_reserved_name(name):
        raise TaskNameInvalid(
            f"{name!r} is not a valid task name. Use letters, digits, '.', '_' and '-', with or "
            f"without a namespace and '/' before it.",
            name=name,
        )
    return f"/v1/tasks/{quote(name, safe='@/')}"
