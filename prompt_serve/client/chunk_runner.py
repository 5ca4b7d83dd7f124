"""Send one chunk of images: read the files, pack them into requests, collect the results."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from prompt_serve.client import wire
from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageFile, UnreadableImage, pack
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import Chunk, Plan
from prompt_serve.errors import PromptServeError, RequestTooLarge, ServiceFailed
from prompt_serve.schemas import ImageResult

Result = TypeVar("Result")


class ChunkRunner(ABC, Generic[Result]):
    """Sends chunks of images, ``plan.concurrency`` of them at a time."""

    def __init__(self, connection: Connection, *, plan: Plan, retry: RetryPolicy) -> None:
        self.plan = plan
        self._connection = connection
        self._retry = retry
        self._slots = asyncio.Semaphore(plan.concurrency)

    async def __call__(self, chunk: Chunk) -> list[Result]:
        """Return one result per image of ``chunk``, in its order and with its indices."""
        results: dict[int, Result] = {}
        requests = pack(
            chunk,
            max_images=self.plan.chunk_size,
            request_bytes=self.plan.request_bytes,
            max_bytes=self.plan.max_body_bytes,
            resize=self.plan.resize,
        )
        async with self._slots:
            # In a thread: reading, resizing and encoding images would block the event loop.
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                if isinstance(request, UnreadableImage):
                    results[request.index] = self._failed(request, request.error)
                else:
                    answers = await self._run(request)
                    results.update(zip((file.index for file in request), answers, strict=True))
        return [results[index] for index, _ in chunk]

    @abstractmethod
    async def _run(self, files: list[ImageFile]) -> list[Result]:
        """Return one result per file, in order."""

    @abstractmethod
    def _failed(self, image: ImageFile | UnreadableImage, error: PromptServeError) -> Result:
        """Return the result of an image that could not be sent or failed."""

    async def _send_or_split(
        self, files: list[ImageFile], send: Callable[[list[ImageFile]], Awaitable[list[Result]]]
    ) -> list[Result]:
        """Send one request; if it fails as a whole, halve it until the bad image is alone."""
        try:
            return await send(files)
        except (RequestTooLarge, ServiceFailed) as error:
            if isinstance(error, ServiceFailed) and error.status < 500:
                raise  # not our service: fewer images would fare no better
            if len(files) == 1:
                return [self._failed(files[0], error)]
        middle = len(files) // 2
        return [
            *await self._send_or_split(files[:middle], send),
            *await self._send_or_split(files[middle:], send),
        ]


class Classifier(ChunkRunner[ImageResult]):
    """Classifies chunks of images with some tasks."""

    def __init__(
        self, connection: Connection, options: ClassifyOptions, *, plan: Plan, retry: RetryPolicy
    ) -> None:
        super().__init__(connection, plan=plan, retry=retry)
        self._groups = options.groups(plan.max_tasks)

    async def _run(self, files: list[ImageFile]) -> list[ImageResult]:
        by_group = [
            await self._send_or_split(files, partial(self._send, group=group))
            for group in self._groups
        ]
        return [wire.merge_results(parts) for parts in zip(*by_group, strict=True)]

    def _failed(self, image: ImageFile | UnreadableImage, error: PromptServeError) -> ImageResult:
        return wire.failed_result(image, error)

    async def _send(self, files: list[ImageFile], group: ClassifyOptions) -> list[ImageResult]:
        call = wire.classify_call(files, group, streamed=self.plan.streams)
        reply = await self._connection.send(call, self._retry)
        # In a thread: thousands of lines would block the event loop.
        return await asyncio.to_thread(
            wire.read_image_results, reply.response, files, group.n_predictions
        )
