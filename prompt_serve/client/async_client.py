"""``AsyncClient``: ask a running service from an asyncio program."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, overload

from prompt_serve.client import wire
from prompt_serve.client.chunk_runner import ChunkRunner, Classifier, Question, question
from prompt_serve.client.connection import Connection
from prompt_serve.client.embedding import (
    Embedder,
    Embeddings,
    EmbeddingScorer,
    EmbeddingSource,
    rows_of_embeddings,
    together,
)
from prompt_serve.client.images import ImageSource, one_or_many
from prompt_serve.client.progress import progress_bar
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import (
    CHUNK_IMAGES,
    Chunk,
    Plan,
    ScoredImage,
    async_chunks_of,
    async_in_order,
    n_images,
    plan_for,
    rows_of,
)
from prompt_serve.client.task_calls import TaskCalls
from prompt_serve.client.wire import Call
from prompt_serve.errors import (
    ConfigInvalid,
    NotReady,
    ServiceUnreachable,
)
from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    ImageResult,
    Limits,
    ServiceInfo,
)

DEFAULT_URL = "http://localhost:3000"
POLL_S = 0.2

Result = TypeVar("Result")


class AsyncClient(TaskCalls):
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
        self,
        images: ImageSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> ImageResult: ...

    @overload
    async def classify(
        self,
        images: Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> list[ImageResult]: ...

    async def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> ImageResult | list[ImageResult]:
        """Ask one or more tasks about one or more images.

        Args:
            images: a path (a str is one), the bytes of an image file, a file opened in binary
                mode, a PIL image, a uint8 array (H, W, 3), or a URL that the service fetches; or
                a list of such, of any length: it is cut into requests that the service takes.
            tasks: names; ``NAME@VERSION`` for one version of a task, ``*`` for all tasks.
            top_k: classes wanted of each task, best first.
            tags: all tasks that have one of them.
            deadline_s: how long the service may take over each request; images that wait longer
                are not run and have an error.

        Returns:
            Of one image its result; of several a list in their order, where a bad image is a
            result with an ``error``.

        Raises:
            ImageInvalid, ImageTooLarge, RequestTooLarge: the one image is bad.
            TaskNotFound: and whatever else concerns the request as a whole.
        """
        one, many = one_or_many(images)
        results = await self.classify_all(many, question(tasks, tags, top_k, deadline_s))
        return wire.only(results) if one else results

    async def classify_all(
        self, images: Iterable[ImageSource], asked: Question
    ) -> list[ImageResult]:
        """``classify`` for several images: one result an image, in their order."""
        plan = await self._plan(CHUNK_IMAGES)
        return await self._all(
            images, Classifier(self._connection, asked, plan=plan, retry=self._retry)
        )

    async def embed(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """Embeddings of one or many images, as a table (N, width).

        Args:
            images: as for ``classify``.
            deadline_s: as for ``classify``.

        Raises:
            BackboneMismatch: the service changed its backbone meanwhile.
        """
        _, many = one_or_many(images)
        plan = await self._plan(CHUNK_IMAGES)
        embedder = Embedder(self._connection, plan=plan, retry=self._retry, deadline_s=deadline_s)
        backbone = (await self.info()).backbone
        found = await self._all(many, embedder)
        return together(found, backbone.id, backbone.fingerprint, backbone.embed_dim)

    async def score_embeddings(
        self,
        embeddings: EmbeddingSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> list[ImageResult]:
        """``classify`` for images that were embedded before, of which there may be any number.

        Args:
            embeddings: what ``embed`` gave (its backbone is checked), or (N, width) numbers.
            tasks: as for ``classify``.
            top_k: as for ``classify``.
            tags: as for ``classify``.
            deadline_s: as for ``classify``.

        Raises:
            BackboneMismatch: they are of another backbone than the service's.
        """
        rows, fingerprint = rows_of_embeddings(embeddings)
        asked = question(tasks, tags, top_k, deadline_s)
        plan = await self._plan(CHUNK_IMAGES)
        scorer = EmbeddingScorer(self._connection, asked, plan=plan, retry=self._retry)
        return await scorer(rows, fingerprint)

    async def _all(self, images: Iterable[ImageSource], asker: ChunkRunner[Result]) -> list[Result]:
        chunks = async_chunks_of(images, asker.plan.chunk_size)
        results: list[Result] = []
        async with aclosing(async_in_order(chunks, asker, asker.plan.depth)) as answers:
            async for answer in answers:
                results += answer
        return results

    async def score(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        tasks: str | Sequence[str] = (),
        *,
        tags: str | Sequence[str] = (),
        top_k: int = 1,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        deadline_s: float | None = None,
        progress: bool = False,
    ) -> AsyncIterator[ScoredImage]:
        """Score a stream of images of any length; rows come in the order of the images.

        The stream is consumed as rows are taken, a bounded number of images ahead. An image
        that cannot be read or answered is a row with an ``error``, one for each task; with ``*``
        or tags one for each of these.

        Args:
            images: as for ``classify``; a plain iterable that blocks, blocks the event loop.
            tasks: as for ``classify``.
            tags: as for ``classify``.
            top_k: classes wanted of each task, best first.
            chunk_size: images a request at most; the service's own limits are kept as well.
            retry_for_s: how long a request is repeated while the service is down or busy.
            deadline_s: as for ``classify``.
            progress: show a progress bar.

        Raises:
            ServiceUnreachable, DeadlineExceeded, NotReady, Overloaded: for ``retry_for_s``.
            TaskNotFound: and whatever else concerns every image.
        """
        asked = question(tasks, tags, top_k, deadline_s)
        scorer = await self.scorer(asked, chunk_size, retry_for_s)
        chunks = async_chunks_of(images, scorer.plan.chunk_size)
        with progress_bar(images, shown=progress) as bar:
            async with aclosing(async_in_order(chunks, scorer, scorer.plan.depth)) as scored:
                async for rows in scored:
                    for row in rows:
                        yield row
                    bar.update(n_images(rows))

    async def scorer(self, asked: Question, chunk_size: int, retry_for_s: float) -> "Scorer":
        """What ``score`` runs for each chunk."""
        retry = RetryPolicy(retries=None, budget_s=retry_for_s)
        plan = await self._plan(chunk_size)
        classifier = Classifier(self._connection, asked, plan=plan, retry=retry)
        return Scorer(classifier, asked.selectors)

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
                return wire.check(reply.response)
            except (ServiceUnreachable, NotReady) as error:
                if time.monotonic() + POLL_S > until:
                    waited = f"Waited {timeout_s:g} s. {error.message}"
                    raise type(error)(waited, **error.facts) from error
            await asyncio.sleep(POLL_S)

    async def _plan(self, chunk_size: int) -> Plan:
        if self._limits is None:
            self._limits = (await self.info()).limits
        return plan_for(self._limits, concurrency=self._concurrency, chunk_size=chunk_size)


class Scorer:
    """Chunks of images -> rows."""

    def __init__(self, classifier: Classifier, tasks: Sequence[str]) -> None:
        self.plan = classifier.plan
        self._classifier = classifier
        self._tasks = tasks

    async def __call__(self, chunk: Chunk) -> list[ScoredImage]:
        return rows_of(chunk, await self._classifier(chunk), self._tasks)
