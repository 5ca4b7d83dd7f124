"""Ask about one chunk of images: read them, cut them into requests, put the answers together."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from prompt_serve.client import wire
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageFile, UnreadableImage, pack
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import Chunk, Plan
from prompt_serve.errors import PromptServeError, RequestInvalid, RequestTooLarge, ServiceFailed
from prompt_serve.schemas import DEFAULT_TOP_K, ImageResult

EVERY_TASK = "*"

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every image."""

    tasks: tuple[str, ...]
    tags: tuple[str, ...] = ()
    top_k: int = DEFAULT_TOP_K
    deadline_s: float | None = None

    @property
    def n_tasks(self) -> int | None:
        """How many predictions an image gets; None where the service alone knows."""
        return None if self.tags or EVERY_TASK in self.tasks else len(self.tasks)

    @property
    def selectors(self) -> tuple[str, ...]:
        """What was asked for, as rows of images without an answer call it."""
        return (*self.tasks, *(f"tag:{tag}" for tag in self.tags))

    def groups(self, max_tasks: int) -> list["Question"]:
        """The same in requests of at most ``max_tasks`` tasks, as far as they can be counted."""
        if self.n_tasks is None:
            return [self]
        return [
            replace(self, tasks=self.tasks[i : i + max_tasks])
            for i in range(0, len(self.tasks), max_tasks)
        ]


def question(
    tasks: str | Sequence[str],
    tags: str | Sequence[str] = (),
    top_k: int = DEFAULT_TOP_K,
    deadline_s: float | None = None,
) -> Question:
    """What a caller asks, each name once.

    Raises:
        RequestInvalid: no task and no tag, or a deadline that is over already.
    """
    if deadline_s is not None and deadline_s <= 0:
        raise RequestInvalid(f"deadline_s is {deadline_s:g}; wanted seconds above 0.")
    asked = Question(tasks=_names(tasks), tags=_names(tags), top_k=top_k, deadline_s=deadline_s)
    if not asked.selectors:
        raise RequestInvalid("No task was named. Name at least one, as in tasks='pets'.")
    return asked


class ChunkRunner(ABC, Generic[Result]):
    """Asks about chunks of images, ``plan.concurrency`` of them at a time."""

    def __init__(self, connection: Connection, *, plan: Plan, retry: RetryPolicy) -> None:
        self.plan = plan
        self._connection = connection
        self._retry = retry
        self._free = asyncio.Semaphore(plan.concurrency)

    async def __call__(self, chunk: Chunk) -> list[Result]:
        """A result for each image of ``chunk``, in its order, with the chunk's indices."""
        results: dict[int, Result] = {}
        requests = pack(
            chunk,
            max_images=self.plan.chunk_size,
            request_bytes=self.plan.request_bytes,
            max_bytes=self.plan.max_body_bytes,
        )
        async with self._free:
            # Reading files and writing PNGs takes its time; the event loop has others to serve.
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                if isinstance(request, UnreadableImage):
                    results[request.index] = self._failed(request, request.error)
                else:
                    answers = await self._ask(request)
                    results.update(zip((file.index for file in request), answers, strict=True))
        return [results[index] for index, _ in chunk]

    @abstractmethod
    async def _ask(self, files: list[ImageFile]) -> list[Result]:
        """One result a file, in their order."""

    @abstractmethod
    def _failed(self, image: ImageFile | UnreadableImage, error: PromptServeError) -> Result:
        """The result of an image that was not answered."""


class Classifier(ChunkRunner[ImageResult]):
    """Asks some tasks about chunks of images."""

    def __init__(
        self, connection: Connection, asked: Question, *, plan: Plan, retry: RetryPolicy
    ) -> None:
        super().__init__(connection, plan=plan, retry=retry)
        self._groups = asked.groups(plan.max_tasks)

    async def _ask(self, files: list[ImageFile]) -> list[ImageResult]:
        answers = [await self._ask_group(files, group) for group in self._groups]
        return [wire.merged(parts) for parts in zip(*answers, strict=True)]

    def _failed(self, image: ImageFile | UnreadableImage, error: PromptServeError) -> ImageResult:
        return wire.failed_result(image, error)

    async def _ask_group(self, files: list[ImageFile], group: Question) -> list[ImageResult]:
        """Ask; what fails as a whole is cut in two, until the image at fault stands alone."""
        call = wire.classify_call(files, group.tasks, group.tags, group.top_k, group.deadline_s)
        try:
            reply = await self._connection.send(call, self._retry)
            return wire.results_of(reply.response, files, group.n_tasks)
        except (RequestTooLarge, ServiceFailed) as error:
            if not is_of_one_image(error):
                raise
            if len(files) == 1:
                return [wire.failed_result(files[0], error)]
        middle = len(files) // 2
        return [
            *await self._ask_group(files[:middle], group),
            *await self._ask_group(files[middle:], group),
        ]


def is_of_one_image(error: RequestTooLarge | ServiceFailed) -> bool:
    """Whether fewer images may fare better; not where it is not our service that answers."""
    return not isinstance(error, ServiceFailed) or error.status >= 500


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
