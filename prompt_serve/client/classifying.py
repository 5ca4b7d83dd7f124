"""Classify one chunk of images: read them, cut them into requests, put the answers together."""

import asyncio
from collections.abc import Sequence

from prompt_serve.client import protocol
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageFile, Unsent, pack
from prompt_serve.client.retrying import RetryPolicy
from prompt_serve.client.scoring import Chunk, Plan
from prompt_serve.errors import RequestInvalid, RequestTooLarge, ServiceFailed
from prompt_serve.schemas import ImageResult


class Classifier:
    """Asks some tasks about chunks of images, ``plan.concurrency`` of them at a time."""

    def __init__(
        self,
        connection: Connection,
        tasks: Sequence[str],
        *,
        top_k: int,
        plan: Plan,
        retry: RetryPolicy,
    ) -> None:
        self.plan = plan
        self._connection = connection
        self._tasks = tasks
        self._top_k = top_k
        self._retry = retry
        self._free = asyncio.Semaphore(plan.concurrency)

    async def __call__(self, chunk: Chunk) -> list[ImageResult]:
        """A result for each image of ``chunk``, in its order, with the chunk's indices."""
        results: dict[int, ImageResult] = {}
        requests = pack(
            chunk,
            max_images=self.plan.chunk_size,
            request_bytes=self.plan.request_bytes,
            max_bytes=self.plan.max_body_bytes,
        )
        async with self._free:
            # Reading files and writing PNGs takes its time; the event loop has others to serve.
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                if isinstance(request, Unsent):
                    results[request.index] = protocol.failed_result(request, request.error)
                else:
                    results.update({r.index: r for r in await self._ask_all_tasks(request)})
        return [results[index] for index, _ in chunk]

    async def _ask_all_tasks(self, files: list[ImageFile]) -> list[ImageResult]:
        size = self.plan.max_tasks
        groups = [self._tasks[i : i + size] for i in range(0, len(self._tasks), size)]
        answers = [await self._ask(files, group) for group in groups]
        return [protocol.merged(parts) for parts in zip(*answers, strict=True)]

    async def _ask(self, files: list[ImageFile], tasks: Sequence[str]) -> list[ImageResult]:
        """Ask; what fails as a whole is cut in two, until the image at fault stands alone."""
        try:
            call = protocol.classify_call(files, tasks, self._top_k)
            reply = await self._connection.send(call, self._retry)
            return protocol.results_of(reply.response, files, len(tasks))
        except (RequestTooLarge, ServiceFailed) as error:
            if isinstance(error, ServiceFailed) and error.status < 500:
                raise  # not our service, or not our version of it: the same for every image
            if len(files) == 1:
                return [protocol.failed_result(files[0], error)]
        middle = len(files) // 2
        return [*await self._ask(files[:middle], tasks), *await self._ask(files[middle:], tasks)]


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """The names asked for, each once."""
    names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    if not names:
        raise RequestInvalid("No task was named. Name at least one, as in tasks='pets'.")
    return names
