"""``Client``: ask a running service from plain, blocking code."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Self, overload

from prompt_serve.client.async_client import DEFAULT_URL, AsyncClient
from prompt_serve.client.chunk_runner import question
from prompt_serve.client.embedding import Embeddings, EmbeddingSource
from prompt_serve.client.images import ImageSource, one_or_many
from prompt_serve.client.loop_thread import LoopThread
from prompt_serve.client.progress import progress_bar
from prompt_serve.client.scoring import (
    CHUNK_IMAGES,
    Chunk,
    ScoredImage,
    chunks_of,
    in_order,
    n_images,
)
from prompt_serve.client.sync_task_calls import SyncTaskCalls
from prompt_serve.client.wire import only
from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    ImageResult,
    ServiceInfo,
)


class Client(SyncTaskCalls):
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
        self,
        images: ImageSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
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
        deadline_s: float | None = None,
    ) -> list[ImageResult]: ...

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> ImageResult | list[ImageResult]:
        """One image's result, or a list of results; see ``AsyncClient.classify``."""
        one, many = one_or_many(images)
        # A list, because a generator must run in the thread that it came from.
        asked = question(tasks, tags, top_k, deadline_s)
        results = self._loop.run(self._client.classify_all, list(many), asked)
        return only(results) if one else results

    def embed(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """Embeddings of one or many images; see ``AsyncClient.embed``."""
        _, many = one_or_many(images)
        embed = partial(self._client.embed, deadline_s=deadline_s)
        return self._loop.run(embed, list(many))

    def score_embeddings(
        self,
        embeddings: EmbeddingSource,
        tasks: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        *,
        tags: str | Sequence[str] = (),
        deadline_s: float | None = None,
    ) -> list[ImageResult]:
        """Predictions for embeddings; see ``AsyncClient.score_embeddings``."""
        score = partial(self._client.score_embeddings, tags=tags, deadline_s=deadline_s)
        return self._loop.run(score, embeddings, tasks, top_k)

    def score(
        self,
        images: Iterable[ImageSource],
        tasks: str | Sequence[str] = (),
        *,
        tags: str | Sequence[str] = (),
        top_k: int = 1,
        chunk_size: int = CHUNK_IMAGES,
        retry_for_s: float = 60.0,
        deadline_s: float | None = None,
        progress: bool = False,
    ) -> Iterator[ScoredImage]:
        """Score a stream of images of any length; see ``AsyncClient.score``.

        ``images`` is consumed in the thread that takes the rows.
        """
        asked = question(tasks, tags, top_k, deadline_s)
        scorer = self._loop.run(self._client.scorer, asked, chunk_size, retry_for_s)
        chunks = chunks_of(images, scorer.plan.chunk_size)

        def submit(chunk: Chunk) -> "Future[list[ScoredImage]]":
            return self._loop.submit(scorer, chunk)

        with (
            progress_bar(images, shown=progress) as bar,
            closing(in_order(chunks, submit, scorer.plan.depth)) as scored,
        ):
            for rows in scored:
                yield from rows
                bar.update(n_images(rows))

    def info(self) -> ServiceInfo:
        """What the service runs, and its limits."""
        return self._loop.run(self._client.info)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the service can answer; see ``AsyncClient.wait_until_ready``."""
        self._loop.run(self._client.wait_until_ready, timeout_s)


def _close(loop: LoopThread, client: AsyncClient) -> None:
    loop.stop(client.close)
