"""``Client``: ask a running service from plain, blocking code."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from types import TracebackType
from typing import Self, overload

from prompt_serve.client.async_client import DEFAULT_URL, AsyncClient
from prompt_serve.client.classifying import task_names
from prompt_serve.client.images import ImageSource, one_or_many
from prompt_serve.client.loop_thread import LoopThread
from prompt_serve.client.progress import progress_bar
from prompt_serve.client.protocol import only
from prompt_serve.client.scoring import CHUNK_IMAGES, Chunk, ScoredImage, chunks_of, in_order
from prompt_serve.client.uploads import PromptSource
from prompt_serve.schemas import (
    DEFAULT_TEMPLATE,
    DEFAULT_TOP_K,
    ImageResult,
    ServiceInfo,
    TaskInfo,
    TaskSummary,
)


class Client:
    """Asks one service; use it as ``with Client(url) as client``.

    Does what ``AsyncClient`` does, whose methods say it in full, on an event loop in a thread of
    its own. Several threads may share a client.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        retries: int = 4,
        concurrency: int = 4,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        """Make a client; see ``AsyncClient``."""
        self._client = AsyncClient(
            base_url,
            timeout_s=timeout_s,
            retries=retries,
            concurrency=concurrency,
            headers=headers,
            api_key=api_key,
        )
        self._loop = LoopThread("prompt-serve client")
        self._close = weakref.finalize(self, _close, self._loop, self._client)

    @property
    def base_url(self) -> str:
        """Of the service, without a slash at its end."""
        return self._client.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight, close all connections and end the thread."""
        self._close()

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one path, never a list
        self, images: ImageSource, tasks: str | Sequence[str], top_k: int = DEFAULT_TOP_K
    ) -> ImageResult: ...

    @overload
    def classify(
        self, images: Iterable[ImageSource], tasks: str | Sequence[str], top_k: int = DEFAULT_TOP_K
    ) -> list[ImageResult]: ...

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str],
        top_k: int = DEFAULT_TOP_K,
    ) -> ImageResult | list[ImageResult]:
        """One image's result, or a list of results; see ``AsyncClient.classify``."""
        one, many = one_or_many(images)
        # A list, because a generator must run in the thread that it came from.
        results = self._loop.run(self._client.classify_all, list(many), tasks, top_k)
        return only(results) if one else results

    def score(
        self,
        images: Iterable[ImageSource],
        tasks: str | Sequence[str],
        *,
        top_k: int = 1,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        progress: bool = False,
    ) -> Iterator[ScoredImage]:
        """Score a stream of images of any length; see ``AsyncClient.score``.

        ``images`` is consumed in the thread that takes the rows.
        """
        names = task_names(tasks)
        scorer = self._loop.run(self._client.scorer, names, top_k, chunk_size, retry_for_s)
        chunks = chunks_of(images, scorer.plan.chunk_size)

        def submit(chunk: Chunk) -> "Future[list[ScoredImage]]":
            return self._loop.submit(scorer, chunk)

        with (
            progress_bar(images, shown=progress) as bar,
            closing(in_order(chunks, submit, scorer.plan.depth)) as scored,
        ):
            for rows in scored:
                yield from rows
                bar.update(len(rows) // len(names))

    def upload(self, file: PromptSource, name: str | None = None) -> TaskInfo:
        """Serve a prompt as a task; see ``AsyncClient.upload``."""
        return self._loop.run(self._client.upload, file, name)

    def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    ) -> TaskInfo:
        """Serve a task made of class names alone; ``{}`` in a template is the class name."""
        return self._loop.run(self._client.create_zero_shot, name, class_names, templates)

    def tasks(self) -> Iterator[TaskSummary]:
        """All tasks in the order of their names, fetched page by page."""
        after: str | None = None
        while True:
            page = self._loop.run(self._client.tasks_page, after)
            yield from page.tasks
            if page.next is None:
                return
            after = page.next

    def task(self, name: str) -> TaskInfo:
        """All there is to know about a task."""
        return self._loop.run(self._client.task, name)

    def download(self, name: str) -> bytes:
        """The prompt file of a task."""
        return self._loop.run(self._client.download, name)

    def delete(self, name: str) -> None:
        """Stop serving a task."""
        self._loop.run(self._client.delete, name)

    def info(self) -> ServiceInfo:
        """What the service runs, and its limits."""
        return self._loop.run(self._client.info)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the service can answer; see ``AsyncClient.wait_until_ready``."""
        self._loop.run(self._client.wait_until_ready, timeout_s)


def _close(loop: LoopThread, client: AsyncClient) -> None:
    loop.stop(client.close)
