"""What ``Client`` can ask about tasks; see ``AsyncClient`` for what the calls do."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from prompt_serve.client.async_client import AsyncClient
from prompt_serve.client.loop_thread import LoopThread
from prompt_serve.client.uploads import PromptSource
from prompt_serve.schemas import (
    DEFAULT_TEMPLATE,
    BulkReport,
    Change,
    History,
    TaskInfo,
    TaskList,
    TaskSummary,
)

Page = TypeVar("Page", TaskList, History)


class SyncTaskCalls:
    """``TaskCalls`` for programs that block."""

    _loop: LoopThread
    _client: AsyncClient

    def upload(
        self,
        file: PromptSource,
        name: str | None = None,
        *,
        expected: str | None = None,
        new: bool = False,
    ) -> TaskInfo:
        """Serve a prompt as a task; see ``AsyncClient.upload``."""
        return self._loop.run(self._client.upload, file, name, expected=expected, new=new)

    def upload_many(self, source: str | Path, *, atomic: bool = True) -> BulkReport:
        """Serve every prompt file of a folder or zip; see ``AsyncClient.upload_many``."""
        return self._loop.run(self._client.upload_many, source, atomic=atomic)

    def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    ) -> TaskInfo:
        """Serve a task made of class names alone; ``{}`` in a template is the class name."""
        return self._loop.run(self._client.create_zero_shot, name, class_names, templates)

    def tasks(self, *, search: str = "", tags: Sequence[str] = ()) -> Iterator[TaskSummary]:
        """Tasks in the order of their names, page by page; see ``AsyncClient.tasks``."""

        def page(cursor: str | None) -> TaskList:
            return self._loop.run(self._client.tasks_page, cursor, search=search, tags=tags)

        for one in _pages(page):
            yield from one.tasks

    def task(self, name: str) -> TaskInfo:
        """All there is to know about a task, or about a version of it (``name@sha``)."""
        return self._loop.run(self._client.task, name)

    def download(self, name: str) -> bytes:
        """The prompt file of a task, or of a version of it (``name@sha``)."""
        return self._loop.run(self._client.download, name)

    def history(self, name: str) -> Iterator[Change]:
        """What a task pointed at, newest first."""
        for page in _pages(lambda cursor: self._loop.run(self._client.history_page, name, cursor)):
            yield from page.changes

    def rollback(
        self, name: str, version: str | None = None, *, expected: str | None = None
    ) -> TaskInfo:
        """Point a task at an earlier version again; see ``AsyncClient.rollback``."""
        return self._loop.run(self._client.rollback, name, version, expected=expected)

    def alias(self, name: str, of: str) -> TaskInfo:
        """Point a name at the version that the task ``of`` is at now (or ``of@sha``)."""
        return self._loop.run(self._client.alias, name, of)

    def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        """Replace the tags of a task."""
        return self._loop.run(self._client.set_tags, name, tags)

    def set_pinned(self, name: str, pinned: bool = True) -> TaskInfo:
        """Keep a task in the service's memory from now on, or no longer."""
        return self._loop.run(self._client.set_pinned, name, pinned)

    def delete(self, name: str, *, expected: str | None = None) -> None:
        """Stop serving a task; ``rollback`` brings it back."""
        self._loop.run(self._client.delete, name, expected=expected)

    def delete_version(self, version: str) -> None:
        """Remove a prompt file for good; no task may be at it."""
        self._loop.run(self._client.delete_version, version)

    def export_registry(self) -> bytes:
        """All tasks with their prompt files and tags, as a zip."""
        return self._loop.run(self._client.export_registry)

    def import_registry(self, data: bytes) -> BulkReport:
        """Take over all tasks of an exported registry; those of the same names are replaced."""
        return self._loop.run(self._client.import_registry, data)


def _pages(page: Callable[[str | None], Page]) -> Iterator[Page]:
    cursor: str | None = None
    while True:
        one = page(cursor)
        yield one
        if one.next is None:
            return
        cursor = one.next
