"""``AsyncClient``: ask a running service from an asyncio program."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, overload
from urllib.parse import quote

from pydantic import BaseModel

from prompt_serve.client import protocol
from prompt_serve.client.classifying import Classifier, task_names
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageSource, one_or_many
from prompt_serve.client.progress import progress_bar
from prompt_serve.client.protocol import Call
from prompt_serve.client.retrying import RetryPolicy
from prompt_serve.client.scoring import (
    CHUNK_IMAGES,
    Chunk,
    ScoredImage,
    async_chunks_of,
    async_in_order,
    plan_for,
    rows_of,
)
from prompt_serve.client.uploads import PromptSource, prompt_to_upload
from prompt_serve.errors import (
    ConfigInvalid,
    NotReady,
    ServiceUnreachable,
    TaskNameInvalid,
    TaskNotFound,
)
from prompt_serve.schemas import (
    DEFAULT_TEMPLATE,
    DEFAULT_TOP_K,
    ImageResult,
    Limits,
    ServiceInfo,
    TaskInfo,
    TaskList,
    TaskSummary,
)

DEFAULT_URL = "http://localhost:3000"
PAGE_SIZE = 100
POLL_S = 0.2

Message = TypeVar("Message", bound=BaseModel)


class AsyncClient:
    """Asks one service; use it as ``async with AsyncClient(url) as client``.

    Calls are repeated when the connection drops and when the service says 429 or 503; all of
    them may be repeated safely. Errors are those of ``prompt_serve.errors``.
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
        """Make a client; nothing is connected yet.

        Args:
            base_url: of the service, with ``http://`` or ``https://``.
            timeout_s: how long to wait for an answer, each attempt.
            retries: further attempts after the first, with growing pauses (4: about 4 s).
            concurrency: requests in flight when many images are asked about.
            headers: sent with every request.
            api_key: of a service that asks for one; None for PROMPT_SERVE_API_KEY, "" for none.
        """
        if retries < 0 or concurrency < 1:
            raise ConfigInvalid(
                f"retries is {retries} and concurrency {concurrency}; wanted retries >= 0 and "
                f"concurrency >= 1."
            )
        self._connection = Connection(
            base_url, timeout_s=timeout_s, headers=headers, api_key=api_key
        )
        self._retry = RetryPolicy(retries=retries)
        self._concurrency = concurrency
        self._limits: Limits | None = None

    @property
    def base_url(self) -> str:
        """Of the service, without a slash at its end."""
        return self._connection.base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    @overload
    async def classify(  # type: ignore[overload-overlap]  # a str is one path, never a list
        self, images: ImageSource, tasks: str | Sequence[str], top_k: int = DEFAULT_TOP_K
    ) -> ImageResult: ...

    @overload
    async def classify(
        self, images: Iterable[ImageSource], tasks: str | Sequence[str], top_k: int = DEFAULT_TOP_K
    ) -> list[ImageResult]: ...

    async def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str],
        top_k: int = DEFAULT_TOP_K,
    ) -> ImageResult | list[ImageResult]:
        """Ask one or more tasks about one or more images.

        Args:
            images: a path (a str is one), the bytes of an image file, a file opened in binary
                mode, a PIL image or a uint8 array (H, W, 3); or a list of such, of any length:
                it is cut into requests that the service takes.
            tasks: names.
            top_k: classes wanted of each task, best first.

        Returns:
            Of one image its result; of several a list in their order, where a bad image is a
            result with an ``error``.

        Raises:
            ImageInvalid, ImageTooLarge, RequestTooLarge: the one image is bad.
            TaskNotFound: and whatever else concerns the request as a whole.
        """
        one, many = one_or_many(images)
        results = await self.classify_all(many, tasks, top_k)
        return protocol.only(results) if one else results

    async def classify_all(
        self, images: Iterable[ImageSource], tasks: str | Sequence[str], top_k: int = DEFAULT_TOP_K
    ) -> list[ImageResult]:
        """``classify`` for several images: one result an image, in their order."""
        classifier = await self._classifier(task_names(tasks), top_k, CHUNK_IMAGES, self._retry)
        chunks = async_chunks_of(images, classifier.plan.chunk_size)
        results: list[ImageResult] = []
        async with aclosing(async_in_order(chunks, classifier, classifier.plan.depth)) as answers:
            async for answer in answers:
                results += answer
        return results

    async def score(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        tasks: str | Sequence[str],
        *,
        top_k: int = 1,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        progress: bool = False,
    ) -> AsyncIterator[ScoredImage]:
        """Score a stream of images of any length; rows come in the order of the images.

        The stream is consumed as rows are taken, a bounded number of images ahead. An image
        that cannot be read or answered is a row with an ``error`` (one for each task).

        Args:
            images: as for ``classify``; a plain iterable that blocks, blocks the event loop.
            tasks: names.
            top_k: classes wanted of each task, best first.
            chunk_size: images a request at most; the service's own limits are kept as well.
            retry_for_s: how long a request is repeated while the service is down or busy.
            progress: show a progress bar.

        Raises:
            ServiceUnreachable, DeadlineExceeded, NotReady, Overloaded: for ``retry_for_s``.
            TaskNotFound: and whatever else concerns every image.
        """
        names = task_names(tasks)
        scorer = await self.scorer(names, top_k, chunk_size, retry_for_s)
        chunks = async_chunks_of(images, scorer.plan.chunk_size)
        with progress_bar(images, shown=progress) as bar:
            async with aclosing(async_in_order(chunks, scorer, scorer.plan.depth)) as scored:
                async for rows in scored:
                    for row in rows:
                        yield row
                    bar.update(len(rows) // len(names))

    async def scorer(
        self, tasks: Sequence[str], top_k: int, chunk_size: int, retry_for_s: float
    ) -> "Scorer":
        """What ``score`` runs for each chunk."""
        retry = RetryPolicy(retries=None, budget_s=retry_for_s)
        return Scorer(await self._classifier(tasks, top_k, chunk_size, retry), tasks)

    async def upload(self, file: PromptSource, name: str | None = None) -> TaskInfo:
        """Serve a prompt as a task; one of that name is replaced.

        Args:
            file: a path of a prompt file, its bytes, or a Prompt.
            name: of the task; by default the prompt's own, or else the file's without suffix.
        """
        task, data = await asyncio.to_thread(prompt_to_upload, file, name)
        headers = {"Content-Type": "application/octet-stream"}
        call = Call("PUT", _task_path(task), {"content": data, "headers": headers})
        return await self._ask(call, TaskInfo)

    async def create_zero_shot(
        self,
        name: str,
        class_names: Sequence[str],
        templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    ) -> TaskInfo:
        """Serve a task made of class names alone; ``{}`` in a template is the class name."""
        body = {"name": name, "class_names": list(class_names), "templates": list(templates)}
        return await self._ask(Call("POST", "/v1/tasks", {"json": body}), TaskInfo)

    async def tasks(self) -> AsyncIterator[TaskSummary]:
        """All tasks in the order of their names, fetched page by page."""
        after: str | None = None
        while True:
            page = await self.tasks_page(after)
            for task in page.tasks:
                yield task
            if page.next is None:
                return
            after = page.next

    async def tasks_page(self, after: str | None = None, limit: int = PAGE_SIZE) -> TaskList:
        """The tasks whose names come after ``after``, at most ``limit`` of them."""
        params = {"limit": str(limit)} if after is None else {"limit": str(limit), "after": after}
        return await self._ask(Call("GET", "/v1/tasks", {"params": params}), TaskList)

    async def task(self, name: str) -> TaskInfo:
        """All there is to know about a task."""
        return await self._ask(Call("GET", _task_path(name)), TaskInfo)

    async def download(self, name: str) -> bytes:
        """The prompt file of a task."""
        reply = await self._connection.send(Call("GET", _task_path(name) + "/file"), self._retry)
        protocol.check(reply.response)
        return reply.response.content

    async def delete(self, name: str) -> None:
        """Stop serving a task."""
        reply = await self._connection.send(Call("DELETE", _task_path(name)), self._retry)
        try:
            protocol.check(reply.response)
        except TaskNotFound:
            # An attempt whose answer was lost may have deleted it.
            if not reply.repeated:
                raise

    async def info(self) -> ServiceInfo:
        """What the service runs, and its limits."""
        return await self._ask(Call("GET", "/v1/info"), ServiceInfo)

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the service can answer.

        Raises:
            ServiceUnreachable: nothing has answered for ``timeout_s``.
            NotReady: something has, but is not ready yet.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                reply = await self._connection.send(Call("GET", "/readyz"), RetryPolicy(retries=0))
                return protocol.check(reply.response)
            except (ServiceUnreachable, NotReady) as error:
                if time.monotonic() + POLL_S > until:
                    waited = f"Waited {timeout_s:g} s. {error.message}"
                    raise type(error)(waited, **error.facts) from error
            await asyncio.sleep(POLL_S)

    async def _ask(self, call: Call, message: type[Message]) -> Message:
        reply = await self._connection.send(call, self._retry)
        return protocol.read_answer(reply.response, message)

    async def _classifier(
        self, tasks: Sequence[str], top_k: int, chunk_size: int, retry: RetryPolicy
    ) -> Classifier:
        if self._limits is None:
            self._limits = (await self.info()).limits
        plan = plan_for(self._limits, concurrency=self._concurrency, chunk_size=chunk_size)
        return Classifier(self._connection, tasks, top_k=top_k, plan=plan, retry=retry)


class Scorer:
    """Chunks of images -> rows."""

    def __init__(self, classifier: Classifier, tasks: Sequence[str]) -> None:
        self.plan = classifier.plan
        self._classifier = classifier
        self._tasks = tasks

    async def __call__(self, chunk: Chunk) -> list[ScoredImage]:
        return rows_of(chunk, await self._classifier(chunk), self._tasks)


def _task_path(name: str) -> str:
    # Servers take an escaped slash for a slash; such a name would be another address.
    if name in ("", ".", "..") or "/" in name:
        raise TaskNameInvalid(
            f"{name!r} cannot be the name of a task. Use letters, digits, '.', '_' and '-'.",
            name=name,
        )
    return f"/v1/tasks/{quote(name, safe='')}"
