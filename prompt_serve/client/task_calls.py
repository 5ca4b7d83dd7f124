"""What ``AsyncClient`` can ask about tasks: list and change them, their versions, all at once."""

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
)

PAGE_SIZE = 100
_OCTETS = {"Content-Type": "application/octet-stream"}
_ZIP = {"Content-Type": "application/zip"}

Message = TypeVar("Message", bound=BaseModel)


class TaskCalls:
    """Calls about tasks; every one may be repeated safely.

    Changes can be made to depend on what they were decided on: ``expected`` is the version that
    the task must be at, else VersionChanged is raised and nothing happens.
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
    ) -> TaskInfo:
        """Serve a prompt as a task; one of that name is replaced.

        Args:
            file: a path of a prompt file, its bytes, or a Prompt.
            name: of the task; by default the prompt's own, or else the file's without suffix.
            expected: the version that is to be replaced.
            new: only if there is no such task yet.
        """
        task, data = await asyncio.to_thread(prompt_to_upload, file, name)
        headers = {**_OCTETS, **_condition(expected, new=new)}
        reply = await self._send(Call("PUT", _path(task), {"content": data, "headers": headers}))
        try:
            return wire.read_answer(reply.response, TaskInfo)
        except VersionChanged as error:
            # An attempt whose answer was lost may have done it.
            if not reply.repeated or error.current != version_of(data):
                raise
        return await self.task(task)

    async def upload_many(self, source: str | Path, *, atomic: bool = True) -> BulkReport:
        """Serve every prompt file of a folder or zip under its file's name.

        Args:
            source: a folder with ``.safetensors`` files, or a zip of them.
            atomic: all of them or, where one cannot be served, none (ArchiveInvalid, with
                ``errors``); otherwise each for itself, with what is wrong in its item.
        """
        data = await asyncio.to_thread(zip_of, Path(source))
        params = {"atomic": "true" if atomic else "false"}
        arguments = {"content": data, "headers": _ZIP, "params": params}
        return await self._ask(Call("PUT", "/v1/tasks", arguments), BulkReport)

    async def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    ) -> TaskInfo:
        """Serve a task made of class names alone; ``{}`` in a template is the class name."""
        body = {"name": name, "class_names": list(class_names), "templates": list(templates)}
        return await self._ask(Call("POST", "/v1/tasks", {"json": body}), TaskInfo)

    async def tasks(
        self, *, search: str = "", tags: Sequence[str] = ()
    ) -> AsyncIterator[TaskSummary]:
        """Tasks in the order of their names, fetched page by page.

        Args:
            search: part of the name, of a class name or of the method; case does not matter.
            tags: only tasks with all of them.
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
        """One page of tasks; ``next`` of the answer is the ``cursor`` of the next one."""
        params: dict[str, Any] = {"limit": str(limit), "tag": list(tags)}
        params |= {"cursor": cursor} if cursor is not None else {}
        params |= {"search": search} if search else {}
        return await self._ask(Call("GET", "/v1/tasks", {"params": params}), TaskList)

    async def task(self, name: str) -> TaskInfo:
        """All there is to know about a task, or about a version of it (``name@sha``)."""
        return await self._ask(Call("GET", _path(name)), TaskInfo)

    async def download(self, name: str) -> bytes:
        """The prompt file of a task, or of a version of it (``name@sha``)."""
        reply = await self._send(Call("GET", _path(name) + "/file"))
        wire.check(reply.response)
        return reply.response.content

    async def history(self, name: str) -> AsyncIterator[Change]:
        """What a task pointed at, newest first: who changed it, when, how, to which version."""
        cursor: str | None = None
        while True:
            page = await self.history_page(name, cursor)
            for change in page.changes:
                yield change
            if page.next is None:
                return
            cursor = page.next

    async def history_page(self, name: str, cursor: str | None = None) -> History:
        """One page of ``history``."""
        params = {"limit": str(PAGE_SIZE)} | ({} if cursor is None else {"cursor": cursor})
        return await self._ask(Call("GET", _path(name) + "/history", {"params": params}), History)

    async def rollback(
        self, name: str, version: str | None = None, *, expected: str | None = None
    ) -> TaskInfo:
        """Point a task at an earlier version again; bring a deleted one back.

        Args:
            name: of the task.
            version: of its history, or the first 8 or more digits of one; None: the one before.
            expected: the version that is to be replaced; by default the one it is at now, so that
                a repeated call does not go back twice.
        """
        was = expected if expected is not None else await self._version_now(name)
        body = {} if version is None else {"version": version}
        arguments = {"json": body, "headers": _condition(was)}
        reply = await self._send(Call("POST", _path(name) + "/rollback", arguments))
        try:
            return wire.read_answer(reply.response, TaskInfo)
        except VersionChanged:
            if not reply.repeated:
                raise
            [last, *_] = (await self.history_page(name)).changes
            if last.what != "rollback" or last.previous != was:
                raise
        return await self.task(name)

    async def alias(self, name: str, of: str) -> TaskInfo:
        """Point a name at the version that the task ``of`` is at now (or ``of@sha``)."""
        return await self._ask(Call("PUT", _path(name) + "/alias", {"json": {"of": of}}), TaskInfo)

    async def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        """Replace the tags of a task."""
        body = {"tags": list(tags)}
        return await self._ask(Call("PUT", _path(name) + "/tags", {"json": body}), TaskInfo)

    async def set_pinned(self, name: str, pinned: bool = True) -> TaskInfo:
        """Keep a task in the service's memory from now on, or no longer."""
        body = {"pinned": pinned}
        return await self._ask(Call("PUT", _path(name) + "/pinned", {"json": body}), TaskInfo)

    async def delete(self, name: str, *, expected: str | None = None) -> None:
        """Stop serving a task; ``rollback`` brings it back."""
        call = Call("DELETE", _path(name), {"headers": _condition(expected)})
        reply = await self._send(call)
        try:
            wire.check(reply.response)
        except (TaskNotFound, VersionChanged) as error:
            # An attempt whose answer was lost may have deleted it.
            gone = not isinstance(error, VersionChanged) or error.current == "none"
            if not (reply.repeated and gone):
                raise

    async def delete_version(self, version: str) -> None:
        """Remove a prompt file for good; no task may be at it."""
        reply = await self._send(Call("DELETE", f"/v1/versions/{quote(version, safe='')}"))
        try:
            wire.check(reply.response)
        except VersionNotFound:
            if not reply.repeated:
                raise

    async def export_registry(self) -> bytes:
        """All tasks with their prompt files and tags, as a zip."""
        reply = await self._send(Call("GET", "/v1/registry/export"))
        wire.check(reply.response)
        return reply.response.content

    async def import_registry(self, data: bytes) -> BulkReport:
        """Take over all tasks of an exported registry; those of the same names are replaced."""
        arguments = {"content": data, "headers": _ZIP}
        return await self._ask(Call("POST", "/v1/registry/import", arguments), BulkReport)

    async def _version_now(self, name: str) -> str | None:
        try:
            return (await self.task(name)).version
        except TaskNotFound:
            return None  # deleted: there is nothing to be mistaken about

    async def _send(self, call: Call) -> Reply:
        return await self._connection.send(call, self._retry)

    async def _ask(self, call: Call, message: type[Message]) -> Message:
        return wire.read_answer((await self._send(call)).response, message)


def _condition(expected: str | None, *, new: bool = False) -> dict[str, str]:
    headers = {} if expected is None else {"If-Match": f'"{expected}"'}
    return headers | ({"If-None-Match": "*"} if new else {})


def _path(name: str) -> str:
    # Servers take an escaped slash for a slash; such a name would be another address.
    if name in ("", ".", "..") or "/" in name:
        raise TaskNameInvalid(
            f"{name!r} cannot be the name of a task. Use letters, digits, '.', '_' and '-'.",
            name=name,
        )
    return f"/v1/tasks/{quote(name, safe='@')}"
