"""Task calls of ``Client``: those of ``AsyncClient``, blocking."""

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
    """Blocking versions of ``TaskCalls``, where arguments and errors are documented."""

    _loop: LoopThread
    _client: AsyncClient

    def upload(
        self,
        file: PromptSource,
        name: str | None = None,
        *,
        expected: str | None = None,
        new: bool = False,
        tags: Sequence[str] = (),
    ) -> TaskInfo:
        """Upload a prompt and serve it as a task; see ``AsyncClient.upload``."""
        return self._loop.run(
            self._client.upload, file, name, expected=expected, new=new, tags=tags
        )

    def upload_many(
        self,
        source: str | Path,
        *,
        atomic: bool = True,
        tags: Sequence[str] = (),
        namespace: str = "",
    ) -> BulkReport:
        """Upload every prompt file of a folder or zip; see ``AsyncClient.upload_many``."""
        return self._loop.run(
            self._client.upload_many, source, atomic=atomic, tags=tags, namespace=namespace
        )

    def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
        *,
        tags: Sequence[str] = (),
    ) -> TaskInfo:
        """Create a zero-shot task from class names; see ``AsyncClient.create_zero_shot``."""
        return self._loop.run(
            self._client.create_zero_shot, name, class_names, templates, tags=tags
        )

    def tasks(self, *, search: str = "", tags: Sequence[str] = ()) -> Iterator[TaskSummary]:
        """Iterate over tasks, sorted by name; see ``AsyncClient.tasks``."""

        def page(cursor: str | None) -> TaskList:
            return self._loop.run(self._client.tasks_page, cursor, search=search, tags=tags)

        for task_list in _pages(page):
            yield from task_list.tasks

    def task(self, name: str) -> TaskInfo:
        """Return the details of a task, or of one version of it (``name@sha``)."""
        return self._loop.run(self._client.task, name)

    def download(self, name: str) -> bytes:
        """Return the prompt file of a task, or of one version of it (``name@sha``)."""
        return self._loop.run(self._client.download, name)

    def history(self, name: str) -> Iterator[Change]:
        """Iterate over the changes of a task, newest first."""
        for page in _pages(lambda cursor: self._loop.run(self._client.history_page, name, cursor)):
            yield from page.changes

    def rollback(
        self, name: str, version: str | None = None, *, expected: str | None = None
    ) -> TaskInfo:
        """Serve an earlier version of a task again; see ``AsyncClient.rollback``."""
        return self._loop.run(self._client.rollback, name, version, expected=expected)

    def alias(self, name: str, of: str) -> TaskInfo:
        """Point ``name`` at the current version of the task ``of``, or at ``of@sha``."""
        return self._loop.run(self._client.alias, name, of)

    def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        """Replace the tags of a task."""
        return self._loop.run(self._client.set_tags, name, tags)

    def edit_tags(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> TaskInfo:
        """Add and remove tags of a task in one step; its other tags stay."""
        return self._loop.run(self._client.edit_tags, name, add=add, remove=remove)

    def set_pinned(self, name: str, pinned: bool = True) -> TaskInfo:
        """Pin a task, which keeps it in the service's memory, or unpin it."""
        return self._loop.run(self._client.set_pinned, name, pinned)

    def delete(self, name: str, *, expected: str | None = None) -> None:
        """Delete a task; ``rollback`` restores it."""
        self._loop.run(self._client.delete, name, expected=expected)

    def delete_version(self, version: str) -> None:
        """Delete the prompt file of a version for good; no task may be at it."""
        self._loop.run(self._client.delete_version, version)

    def export_registry(self) -> bytes:
        """Return a zip of all tasks with their prompt files and tags."""
        return self._loop.run(self._client.export_registry)

    def import_registry(self, data: bytes) -> BulkReport:
        """Import all tasks of an exported registry; see ``AsyncClient.import_registry``."""
        return self._loop.run(self._client.import_registry, data)


def _pages(fetch: Callable[[str | None], Page]) -> Iterator[Page]:
    cursor: str | None = None
    while True:
        page = fetch(cursor)
        yield page
        if page.next is None:
            return
        cursor = page.next
