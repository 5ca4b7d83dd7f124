"""``Client``: blocking client of a running service."""

import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from types import TracebackType
from typing import Self, overload

from prompt_serve.client.async_client import DEFAULT_URL, AsyncClient
from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.client.embedding import Embeddings, EmbeddingSource
from prompt_serve.client.loop_thread import LoopThread
from prompt_serve.client.scoring import (
    CHUNK_IMAGES,
    Chunk,
    chunks_of,
    count_images,
    in_order,
    progress_bar,
)
from prompt_serve.client.sync_task_calls import SyncTaskCalls
from prompt_serve.client.wire import single_result
from prompt_serve.images.image_source import ImageSource, one_or_many
from prompt_serve.results import ScoredImage, ScoreStream
from prompt_serve.schemas import DEFAULT_TOP_K, ImageResult, ServiceInfo


class Client(SyncTaskCalls):
    """Blocking client of one service; use it as ``with Client(url) as client``.

    Runs an ``AsyncClient`` on an event loop in a thread of its own; arguments and errors are
    documented there. Several threads may share a client.
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
        """Make a client; it connects with the first call. See ``AsyncClient``."""
        self._client = AsyncClient(
            base_url,
            timeout_s=timeout_s,
            retries=retries,
            concurrency=concurrency,
            headers=headers,
            api_key=api_key,
            resize=resize,
        )
        self._loop = LoopThread("prompt-serve client")
        self._close = weakref.finalize(self, _close, self._loop, self._client)

    @property
    def base_url(self) -> str:
        """URL of the service, without a trailing slash."""
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
        """Cancel requests in flight, close all connections and end the thread."""
        self._close()

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one path, never a list
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
    def classify(
        self,
        images: Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> list[ImageResult]: ...

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> ImageResult | list[ImageResult]:
        """Classify one or more images; see ``AsyncClient.classify``.

        Returns:
            The result of a single image, or a list of results in the order of the images.
        """
        one, many = one_or_many(images)
        options = ClassifyOptions.from_arguments(tasks, tags, top_k, deadline_s, top_tasks)
        # A list, because a generator must run in the thread of its caller.
        results = self._loop.run(self._client.classify_all, list(many), options)
        return single_result(results) if one else results

    def embed(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        task: str | None = None,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """Embed one or more images as unit vectors (N, width); see ``AsyncClient.embed``."""
        _, many = one_or_many(images)
        return self._loop.run(self._client.embed, list(many), task=task, deadline_s=deadline_s)

    def score_embeddings(
        self,
        embeddings: EmbeddingSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        top_tasks: int | None = None,
        deadline_s: float | None = None,
    ) -> list[ImageResult]:
        """Classify images by their embeddings; see ``AsyncClient.score_embeddings``."""
        return self._loop.run(
            self._client.score_embeddings,
            embeddings,
            tasks,
            top_k,
            tags=tags,
            top_tasks=top_tasks,
            deadline_s=deadline_s,
        )

    def score(
        self,
        images: Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        *,
        tags: str | Sequence[str] = (),
        top_k: int = 1,
        top_tasks: int | None = None,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        deadline_s: float | None = None,
        progress: bool = False,
    ) -> ScoreStream:
        """Score a stream of images of any length; see ``AsyncClient.score``.

        ``images`` is consumed in the thread that iterates over the rows. ``to_pandas()`` and
        ``to_polars()`` of the stream make a frame of them.
        """
        options = ClassifyOptions.from_arguments(tasks, tags, top_k, deadline_s, top_tasks)
        return ScoreStream(self._scored(images, options, chunk_size, retry_for_s, progress))

    def _scored(
        self,
        images: Iterable[ImageSource],
        options: ClassifyOptions,
        chunk_size: int,
        retry_for_s: float,
        progress: bool,
    ) -> Generator[ScoredImage, None, None]:
        scorer = self._loop.run(self._client.scorer, options, chunk_size, retry_for_s)
        chunks = chunks_of(images, scorer.plan.chunk_size)

        def submit(chunk: Chunk) -> "Future[list[ScoredImage]]":
            return self._loop.submit(scorer, chunk)

        with (
            progress_bar(images, shown=progress) as bar,
            closing(in_order(chunks, submit, scorer.plan.depth)) as scored,
        ):
            for rows in scored:
                yield from rows
                bar.update(count_images(rows))

    def info(self) -> ServiceInfo:
        """Return the service's version, backbone, execution providers and limits."""
        return self._loop.run(self._client.info)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service is ready; see ``AsyncClient.wait_until_ready``."""
        self._loop.run(self._client.wait_until_ready, timeout_s)


def _close(loop: LoopThread, client: AsyncClient) -> None:
    loop.stop(client.close)
