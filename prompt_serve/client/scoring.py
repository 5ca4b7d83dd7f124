"""Batch scoring: split a stream of images into chunks, send several at once, keep the order.

Memory is bounded for streams of any length: at most ``depth`` chunks are taken from the stream
and not yet returned, and file contents are held only for chunks in flight.
"""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
    Sized,
)
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.images.image_source import ImageSource, source_of
from prompt_serve.results import ScoredImage, scored_rows
from prompt_serve.schemas import ImageResult, ServiceInfo

if TYPE_CHECKING:
    from tqdm import tqdm

    from prompt_serve.preprocess import Preprocessing

CHUNK_IMAGES = 32
# Large enough that the cost per request is negligible, small enough to hold little memory.
REQUEST_BYTES = 8 * 2**20
EMBEDDINGS_PER_REQUEST = 512
PREDICTIONS_PER_REQUEST = 20_000  # about 10 MB, of requests with more tasks than a JSON answer has

Chunk: TypeAlias = list[tuple[int, ImageSource]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of chunks and requests, within the limits that the service publishes."""

    chunk_size: int  # images per chunk
    concurrency: int  # chunks in flight
    request_bytes: int
    max_body_bytes: int
    max_tasks: int
    max_embeddings: int
    streams: bool = False  # ask for NDJSON, which any number of tasks fits
    resize: "Preprocessing | None" = None  # images are resized before they are sent

    @property
    def depth(self) -> int:
        """Number of chunks in the window: two wait, so that a slow chunk does not idle a slot."""
        return self.concurrency + 2


def plan_for(
    service: ServiceInfo,
    options: ClassifyOptions | None = None,
    *,
    concurrency: int,
    chunk_size: int = CHUNK_IMAGES,
) -> Plan:
    """Plan requests that fill at most half of the service's queue, so that two clients fit.

    Args:
        service: its limits and its number of tasks.
        options: tasks to score, if any.
        concurrency: number of chunks in flight.
        chunk_size: maximum number of images per chunk.
    """
    limits = service.limits
    fair_share = max(1, limits.max_queue_images // (2 * concurrency))
    max_images = min(chunk_size, limits.max_images, fair_share)
    max_tasks = limits.max_tasks
    max_embeddings = min(EMBEDDINGS_PER_REQUEST, limits.max_embeddings or EMBEDDINGS_PER_REQUEST)
    streams = False
    if options and limits.max_streamed_tasks and options.may_exceed(limits.max_tasks):
        streams, max_tasks = True, limits.max_streamed_tasks
        at_once = PREDICTIONS_PER_REQUEST // max(1, options.n_tasks or service.tasks)
        max_images, max_embeddings = min(max_images, at_once), min(max_embeddings, at_once)
    return Plan(
        chunk_size=max(1, max_images),
        concurrency=concurrency,
        request_bytes=min(REQUEST_BYTES, limits.max_body_bytes),
        max_body_bytes=limits.max_body_bytes,
        max_tasks=max_tasks,
        max_embeddings=max(1, max_embeddings),
        streams=streams,
    )


def rows_of(
    chunk: Chunk, results: Iterable[ImageResult], selectors: Sequence[str]
) -> list[ScoredImage]:
    """Return one row per image and task, image by image.

    Args:
        chunk: images with their indices.
        results: one result per image.
        selectors: task names, ``*`` or ``tag:NAME``; a failed image gets one row for each.
    """
    return [
        row
        for (index, image), result in zip(chunk, results, strict=True)
        for row in scored_rows(index, source_of(image), result, selectors)
    ]


def count_images(rows: Iterable[ScoredImage]) -> int:
    """Count the distinct images of some rows."""
    return len({row.index for row in rows})


def progress_bar(images: object, *, shown: bool) -> "tqdm[Any]":
    """Return a bar on stderr that counts images; it has a total if ``images`` has a length."""
    from tqdm import tqdm  # imported late: not needed when no bar is shown

    total = len(images) if isinstance(images, Sized) else None
    return tqdm(total=total, unit="image", disable=not shown, smoothing=0.05)


def chunks_of(images: Iterable[ImageSource], size: int) -> Iterator[Chunk]:
    """Split a stream lazily into chunks of ``size`` images, numbered from 0."""
    numbered = enumerate(images)
    while chunk := list(islice(numbered, size)):
        yield chunk


async def async_chunks_of(
    images: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[Chunk]:
    """Split a plain or asynchronous stream as ``chunks_of`` does."""
    if not isinstance(images, AsyncIterable):
        for chunk in chunks_of(images, size):
            yield chunk
        return
    index, chunk = 0, []
    async for image in images:
        chunk.append((index, image))
        index += 1
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def in_order(
    chunks: Iterable[Chunk], submit: Callable[[Chunk], "Future[Result]"], depth: int
) -> Generator[Result, None, None]:
    """Yield results in the order of their chunks, with at most ``depth`` chunks in the window.

    A finished result is yielded before the next chunk is taken. Closing the generator, or an
    error, cancels the chunks in the window.
    """
    window: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            window.append(submit(chunk))
            while window and (len(window) >= depth or window[0].done()):
                yield window[0].result()
                window.popleft()
        while window:
            yield window[0].result()
            window.popleft()
    finally:
        for future in window:
            future.cancel()


async def async_in_order(
    chunks: AsyncIterator[Chunk], run: Callable[[Chunk], Awaitable[Result]], depth: int
) -> AsyncGenerator[Result, None]:
    """Yield results as ``in_order`` does, on an event loop."""
    window: deque[asyncio.Future[Result]] = deque()
    try:
        async for chunk in chunks:
            window.append(asyncio.ensure_future(run(chunk)))
            await asyncio.sleep(0)  # let it start, even if the stream itself never awaits
            while window and (len(window) >= depth or window[0].done()):
                yield await window[0]
                window.popleft()
        while window:
            yield await window[0]
            window.popleft()
    finally:
        for future in window:
            future.cancel()
        await asyncio.gather(*window, return_exceptions=True)
