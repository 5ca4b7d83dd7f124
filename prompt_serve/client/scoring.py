"""Batch scoring: cut a stream of images into chunks, several in flight, rows in order.

Memory stays bounded however long the stream is: at most ``depth`` chunks are taken from it and
not yet handed out, and only chunks in flight have their bytes read.
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
)
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, TypeVar

from prompt_serve.client.images import ImageSource, source_of
from prompt_serve.schemas import ClassScore, ImageResult, Limits, Problem

CHUNK_IMAGES = 32
# Requests this large cost nothing more an image, and hold little memory on both sides.
REQUEST_BYTES = 8 * 2**20
EMBEDDINGS = 512  # of a request

Chunk: TypeAlias = list[tuple[int, ImageSource]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """One row: what one task says of one image, or why it could not be asked."""

    index: int  # place of the image in the stream, from 0
    source: str  # its path as given; empty for bytes and pictures in memory
    task: str
    version: str | None  # sha256 of the prompt file that answered
    classes: tuple[ClassScore, ...]  # best first; empty for an error
    error: Problem | None
    unknown: bool = False  # the task's answer is that the image shows none of its classes

    @property
    def class_name(self) -> str | None:
        """The best class, also where it is too improbable and the image ``unknown``."""
        return self.classes[0].class_name if self.classes else None

    @property
    def probability(self) -> float | None:
        """Of the best class."""
        return self.classes[0].probability if self.classes else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a stream is cut: never beyond what the service publishes that it takes."""

    chunk_size: int  # images that share a place in the window
    concurrency: int  # chunks in flight
    request_bytes: int
    max_body_bytes: int
    max_tasks: int
    max_embeddings: int

    @property
    def depth(self) -> int:
        """Chunks in the window: two wait, so that a slow first one does not idle the others."""
        return self.concurrency + 2

    @property
    def look_ahead(self) -> int:
        """The most images taken from the stream and not yet handed out."""
        return self.depth * self.chunk_size


def plan_for(limits: Limits, *, concurrency: int, chunk_size: int = CHUNK_IMAGES) -> Plan:
    """Half of the service's queue at most, so that two such clients do not overflow it."""
    fair_share = max(1, limits.max_queue_images // (2 * concurrency))
    return Plan(
        chunk_size=max(1, min(chunk_size, limits.max_images, fair_share)),
        concurrency=concurrency,
        request_bytes=min(REQUEST_BYTES, limits.max_body_bytes),
        max_body_bytes=limits.max_body_bytes,
        max_tasks=limits.max_tasks,
        max_embeddings=min(EMBEDDINGS, limits.max_embeddings or EMBEDDINGS),
    )


def rows_of(
    chunk: Chunk, results: Iterable[ImageResult], tasks: Sequence[str]
) -> list[ScoredImage]:
    """A row for each image and task, image by image.

    Args:
        chunk: the images.
        results: theirs.
        tasks: what an image without an answer has rows for: the names, or ``*``, or a tag.
    """
    return [
        row
        for (index, image), result in zip(chunk, results, strict=True)
        for row in _rows_of_image(index, source_of(image), result, tasks)
    ]


def n_images(rows: Iterable[ScoredImage]) -> int:
    """How many images some rows are about."""
    return len({row.index for row in rows})


def _rows_of_image(
    index: int, source: str, result: ImageResult, tasks: Sequence[str]
) -> list[ScoredImage]:
    if result.predictions is None:
        return [
            ScoredImage(
                index=index, source=source, task=task, version=None, classes=(), error=result.error
            )
            for task in tasks
        ]
    return [
        ScoredImage(
            index=index,
            source=source,
            task=prediction.task,
            version=prediction.version,
            classes=tuple(prediction.classes),
            error=None,
            unknown=prediction.unknown,
        )
        for prediction in result.predictions
    ]


def chunks_of(images: Iterable[ImageSource], size: int) -> Iterator[Chunk]:
    """Cut a stream, taking no more from it than the chunk that is asked for."""
    numbered = enumerate(images)
    while chunk := list(islice(numbered, size)):
        yield chunk


async def async_chunks_of(
    images: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[Chunk]:
    """``chunks_of`` for streams of both kinds."""
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
    """Results in the order of their chunks, with at most ``depth`` chunks on their way.

    A result that is there is handed out before another chunk is taken. Whoever stops early, or
    an error, cancels what is on its way.
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
    chunks: AsyncIterator[Chunk], work: Callable[[Chunk], Awaitable[Result]], depth: int
) -> AsyncGenerator[Result, None]:
    """``in_order`` on an event loop."""
    window: deque[asyncio.Future[Result]] = deque()
    try:
        async for chunk in chunks:
            window.append(asyncio.ensure_future(work(chunk)))
            await asyncio.sleep(0)  # let it start: a stream that never waits gives it no chance
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
