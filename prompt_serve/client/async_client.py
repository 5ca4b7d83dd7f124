"""``AsyncClient``: asynchronous client of a running service."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, overload

from prompt_serve.client import wire
from prompt_serve.client.chunk_runner import ChunkRunner, Classifier
from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.client.connection import Connection
from prompt_serve.client.embedding import (
    Embedder,
    Embeddings,
    EmbeddingScorer,
    EmbeddingSource,
    combine_embeddings,
    rows_of_embeddings,
)
from prompt_serve.client.images import preprocessing_of
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import (
    CHUNK_IMAGES,
    Chunk,
    Plan,
    async_chunks_of,
    async_in_order,
    count_images,
    plan_for,
    progress_bar,
    rows_of,
)
from prompt_serve.client.task_calls import TaskCalls
from prompt_serve.client.wire import Call
from prompt_serve.errors import ConfigInvalid, NotReady, ServiceUnreachable
from prompt_serve.images.image_source import ImageSource, one_or_many
from prompt_serve.results import ScoredImage
from prompt_serve.schemas import DEFAULT_TOP_K, ImageResult, ServiceInfo

DEFAULT_URL = "http://localhost:3000"
POLL_S = 0.2

Result = TypeVar("Result")


class AsyncClient(TaskCalls):
    """Asynchronous client of one service; use it as ``async with AsyncClient(url) as client``.

    Calls are retried when the connection drops and after the statuses 429, 502, 503 and 504; all
    calls are safe to repeat. Then ServiceUnreachable, DeadlineExceeded, Overloaded or NotReady is
    raised. All errors are those of ``prompt_serve.errors``.
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
        resize: bool = False,
    ) -> None:
        """Make a client; it connects with the first call.

        Args:
            base_url: URL of the service, with ``http://`` or ``https://``; that of its API
                (``/v1``) or page (``/v1/ui``) is one as well.
            timeout_s: time limit of each attempt in seconds.
            retries: number of retries, with growing pauses (4 retries: about 4 s).
            concurrency: maximum number of requests in flight when many images are sent.
            headers: HTTP headers sent with every request.
            api_key: API key; None for the environment's PROMPT_SERVE_API_KEY, "" for none.
            resize: resize images here, as the service would, and send what its model sees: the same
                answers, with some 90 KB instead of megabytes per photograph.

        Raises:
            ConfigInvalid: an argument is out of range.
        """
        if retries < 0 or concurrency < 1:
            raise ConfigInvalid(
                f"retries is {retries} and concurrency {concurrency}; expected retries >= 0 and "
                f"concurrency >= 1."
            )
        self._connection = Connection(
            base_url, timeout_s=timeout_s, headers=headers, api_key=api_key
        )
        self._retry = RetryPolicy(retries=retries)
        self._concurrency = concurrency
        self._resize = resize
        self._service: ServiceInfo | None = None

    @property
    def base_url(self) -> str:
        """URL of the service, without a trailing slash."""
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
        top_tasks: int | None = None,
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
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> list[ImageResult]: ...

    async def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> ImageResult | list[ImageResult]:
        """Classify one or more images with one or more tasks.

        Args:
            images: a path (``str`` or ``Path``), the bytes of an image file, a file opened in
                binary mode, a PIL image, a uint8 array (H, W, 3), or a URL that the service
                fetches; or an iterable of these of any length, which is split into requests
                within the service's limits.
            tasks: task names; ``NAME@VERSION`` for one version of a task, ``*`` for all tasks.
                They may be any number: beyond the limit of a JSON answer they are read from NDJSON.
            top_k: number of classes per task, best first.
            tags: tags; all tasks that have one of them are used too.
            top_tasks: only so many tasks per image, best first: by the probability of their best
                class, tasks that find the image unknown last.
            deadline_s: time limit of each request in the service, in seconds; images that are
                not encoded by then get an error.

        Returns:
            The result of a single image, or a list of results in the order of the images. In a
            list, an invalid image is a result with an ``error``.

        Raises:
            ImageInvalid, ImageTooLarge, RequestTooLarge: the single image is invalid.
            RequestInvalid: neither a task nor a tag was named.
            TaskNotFound: a task is unknown.
        """
        one, many = one_or_many(images)
        options = ClassifyOptions.from_arguments(tasks, tags, top_k, deadline_s, top_tasks)
        results = await self.classify_all(many, options)
        return wire.single_result(results) if one else results

    async def classify_all(
        self, images: Iterable[ImageSource], options: ClassifyOptions
    ) -> list[ImageResult]:
        """Classify several images and return one result per image, in order."""
        plan = await self._plan(CHUNK_IMAGES, options)
        return await self._run_all(
            images, Classifier(self._connection, options, plan=plan, retry=self._retry)
        )

    async def embed(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        task: str | None = None,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """Embed one or more images.

        Args:
            images: as for ``classify``.
            task: name of a task; its vectors of the image tower, if it has any, change the
                embeddings.
            deadline_s: as for ``classify``.

        Returns:
            Unit vectors (N, width) in the order of the images, NaN for invalid images, whose
            errors are in ``errors``.

        Raises:
            BackboneMismatch: the service changed its backbone between two requests.
        """
        _, many = one_or_many(images)
        plan = await self._plan(CHUNK_IMAGES)
        embedder = Embedder(
            self._connection, plan=plan, retry=self._retry, deadline_s=deadline_s, task=task
        )
        backbone = (await self.info()).backbone
        embeddings = await self._run_all(many, embedder)
        combined = combine_embeddings(
            embeddings, backbone.id, backbone.fingerprint, backbone.embed_dim
        )
        return replace(combined, task=task)

    async def score_embeddings(
        self,
        embeddings: EmbeddingSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> list[ImageResult]:
        """Classify images by their embeddings, without sending the images again.

        Args:
            embeddings: result of ``embed``, whose backbone is checked, or numbers of shape
                (N, width).
            tasks: as for ``classify``.
            top_k: as for ``classify``.
            tags: as for ``classify``.
            top_tasks: as for ``classify``.
            deadline_s: as for ``classify``.

        Returns:
            One result per embedding, in order.

        Raises:
            RequestInvalid: the embeddings have another shape.
            BackboneMismatch: they were made by another backbone than the service's.
        """
        rows, fingerprint = rows_of_embeddings(embeddings)
        options = ClassifyOptions.from_arguments(tasks, tags, top_k, deadline_s, top_tasks)
        plan = await self._plan(CHUNK_IMAGES, options)
        scorer = EmbeddingScorer(self._connection, options, plan=plan, retry=self._retry)
        return await scorer(rows, fingerprint)

    async def _run_all(
        self, images: Iterable[ImageSource], runner: ChunkRunner[Result]
    ) -> list[Result]:
        chunks = async_chunks_of(images, runner.plan.chunk_size)
        results: list[Result] = []
        async with aclosing(async_in_order(chunks, runner, runner.plan.depth)) as by_chunk:
            async for chunk_results in by_chunk:
                results += chunk_results
        return results

    async def score(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        tasks: str | Sequence[str] = (),
        *,
        tags: str | Sequence[str] = (),
        top_k: int = 1,
        top_tasks: int | None = None,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        deadline_s: float | None = None,
        progress: bool = False,
    ) -> AsyncIterator[ScoredImage]:
        """Score a stream of images of any length.

        The stream is consumed as rows are taken, a bounded number of images ahead.

        Args:
            images: as for ``classify``, or an asynchronous iterable; a plain iterable must not
                block, because it would block the event loop.
            tasks: as for ``classify``.
            tags: as for ``classify``.
            top_k: number of classes per task, best first.
            top_tasks: as for ``classify``.
            chunk_size: maximum number of images per request, within the service's limits.
            retry_for_s: seconds for which a request is retried while the service is down or busy.
            deadline_s: as for ``classify``.
            progress: show a progress bar.

        Yields:
            One row per image and task, in the order of the images. An invalid image gets rows
            with an ``error``, one for each entry of ``tasks`` and ``tags``.

        Raises:
            ServiceUnreachable, DeadlineExceeded, NotReady, Overloaded: after ``retry_for_s``.
            RequestInvalid: neither a task nor a tag was named.
            TaskNotFound: a task is unknown.
        """
        options = ClassifyOptions.from_arguments(tasks, tags, top_k, deadline_s, top_tasks)
        scorer = await self.scorer(options, chunk_size, retry_for_s)
        chunks = async_chunks_of(images, scorer.plan.chunk_size)
        with progress_bar(images, shown=progress) as bar:
            async with aclosing(async_in_order(chunks, scorer, scorer.plan.depth)) as scored:
                async for rows in scored:
                    for row in rows:
                        yield row
                    bar.update(count_images(rows))

    async def scorer(
        self, options: ClassifyOptions, chunk_size: int, retry_for_s: float
    ) -> "Scorer":
        """Return the coroutine function that ``score`` runs for each chunk."""
        retry = RetryPolicy(retries=None, budget_s=retry_for_s)
        plan = await self._plan(chunk_size, options)
        classifier = Classifier(self._connection, options, plan=plan, retry=retry)
        return Scorer(classifier, options.selectors)

    async def info(self) -> ServiceInfo:
        """Return the service's version, backbone, execution providers and limits."""
        return await self._fetch(Call("GET", "/v1/info"), ServiceInfo)

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service is ready.

        Args:
            timeout_s: maximum time to wait, in seconds.

        Raises:
            ServiceUnreachable: no response within ``timeout_s``.
            NotReady: the service responds but is not ready.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                reply = await self._connection.send(Call("GET", "/readyz"), RetryPolicy(retries=0))
                return wire.raise_for_error(reply.response)
            except (ServiceUnreachable, NotReady) as error:
                if time.monotonic() + POLL_S > until:
                    waited = f"Waited {timeout_s:g} s. {error.message}"
                    raise type(error)(waited, **error.facts) from error
            await asyncio.sleep(POLL_S)

    async def _plan(self, chunk_size: int, options: ClassifyOptions | None = None) -> Plan:
        if self._service is None:
            self._service = await self.info()
        plan = plan_for(
            self._service, options, concurrency=self._concurrency, chunk_size=chunk_size
        )
        return replace(plan, resize=preprocessing_of(self._service)) if self._resize else plan


class Scorer:
    """Scores chunks of images into rows."""

    def __init__(self, classifier: Classifier, selectors: Sequence[str]) -> None:
        self.plan = classifier.plan
        self._classifier = classifier
        self._selectors = selectors

    async def __call__(self, chunk: Chunk) -> list[ScoredImage]:
        return rows_of(chunk, await self._classifier(chunk), self._selectors)
