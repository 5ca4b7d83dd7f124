"""The request flow: resolve tasks -> fetch URLs -> batch -> image features -> logits -> answer.

Everything that blocks runs in threads; the event loop only waits.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import numpy as np

from prompt_serve.bundle import Manifest
from prompt_serve.errors import BackboneMismatch, PromptServeError, RequestInvalid
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.service.inference.batcher import NO_ROWS, Batcher, ImageData, Outcome
from prompt_serve.service.inference.predictions import raise_if_all_failed
from prompt_serve.service.inference.requests import (
    EmbeddingItem,
    ImageItem,
    ImageUrl,
    TaskQuery,
)
from prompt_serve.service.inference.task_scorer import TaskScorer, check_count
from prompt_serve.service.inference.url_fetcher import UrlImageLoader
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.loop_results import LoopResults
from prompt_serve.service.settings import Settings


class Classifier:
    """Answers classify, embed and score requests.

    Args:
        settings: limits of requests.
        manifest: of the backbone that runs here.
        batcher: decodes and encodes images.
        scorer: selects tasks and scores features by them.
    """

    def __init__(
        self, settings: Settings, manifest: Manifest, *, batcher: Batcher, scorer: TaskScorer
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._batcher = batcher
        self._scorer = scorer
        self._urls = UrlImageLoader(settings)
        self._results = LoopResults()

    async def classify(
        self, images: Sequence[ImageItem], query: TaskQuery, deadline: Deadline | None = None
    ) -> bytes:
        """Classify every image with every task; each image is encoded once. Returns the JSON of a
        ``ClassifyAnswer``.

        An image that cannot be read becomes a result with an error. If all of them fail, the error
        of the first is raised, with all errors in its ``errors``.

        Raises:
            RequestInvalid, RequestTooLarge: no images, no tasks, or more than the limits allow.
            TaskNotFound: one of the tasks does not exist, or no task has the tag.
            Overloaded: the queue is full.
            DeadlineExceeded: no image was encoded, or not everything was scored, in time.
        """
        self._check_images(images)
        deadline = deadline or self.deadline()
        return await self._scorer.answer(
            images, query, deadline, partial(self._features, images, deadline)
        )

    async def classify_lines(
        self, images: Sequence[ImageItem], query: TaskQuery, deadline: Deadline
    ) -> AsyncIterator[bytes]:
        """Encode every image as ``classify`` does, then classify them with any number of tasks.

        Returns:
            The answer in NDJSON; see ``TaskScorer.lines``.
        """
        self._check_images(images)
        return await self._scorer.lines(
            images, query, deadline, partial(self._features, images, deadline)
        )

    async def embed(
        self,
        images: Sequence[ImageItem],
        deadline: Deadline | None = None,
        task: str | None = None,
    ) -> list[Outcome]:
        """Return the features (1, E) of every image, of unit length, or its error.

        Args:
            images: at least one.
            deadline: of the request.
            task: name of a task; its vectors of the image tower, if it has any, change the
                features.

        Raises:
            RequestInvalid, RequestTooLarge, Overloaded: as ``classify``.
            TaskNotFound: there is no such task.
        """
        self._check_images(images)
        rows = NO_ROWS if task is None else await self._scorer.rows_of(task)
        return await self._features(images, deadline or self.deadline(), rows)

    async def _features(
        self, images: Sequence[ImageItem], deadline: Deadline, rows: Sequence[ImageRows | None]
    ) -> list[Outcome]:
        """Return the features (V, E) of every image, a row for each of ``rows``, or its error."""
        outcomes = await self._encode(images, deadline, rows)
        raise_if_all_failed(images, outcomes)
        return outcomes

    async def score(
        self,
        embeddings: Sequence[EmbeddingItem],
        query: TaskQuery,
        fingerprint: str | None,
        deadline: Deadline,
    ) -> bytes:
        """Classify images that were embedded before. Returns the JSON of a ``ClassifyAnswer``.

        Raises:
            RequestInvalid, RequestTooLarge, TaskNotFound, DeadlineExceeded: as ``classify``.
            BackboneMismatch: ``fingerprint`` is not that of the backbone that runs here.
        """
        self._check_embeddings(embeddings, fingerprint)
        return await self._scorer.answer(
            embeddings, query, deadline, partial(_contents, embeddings)
        )

    async def score_lines(
        self,
        embeddings: Sequence[EmbeddingItem],
        query: TaskQuery,
        fingerprint: str | None,
        deadline: Deadline,
    ) -> AsyncIterator[bytes]:
        """Classify images that were embedded before, as ``classify_lines`` does."""
        self._check_embeddings(embeddings, fingerprint)
        return await self._scorer.lines(embeddings, query, deadline, partial(_contents, embeddings))

    def deadline(self) -> Deadline:
        """Return the deadline of the current request."""
        return current_request().deadline or Deadline.after(self._settings.request_timeout_s)

    def check_room(self) -> None:
        """Raise Overloaded if the queue has no room for one more image, before its body is read."""
        self._batcher.check_room(1, 0)

    async def _encode(
        self, images: Sequence[ImageItem], deadline: Deadline, rows: Sequence[ImageRows | None]
    ) -> list[Outcome]:
        """Encode every image; those that are errors already keep their errors."""
        current_request().count_images(len(images))
        contents = await self._fetch(images, deadline)
        given = {i: c for i, c in enumerate(contents) if not isinstance(c, PromptServeError)}
        encoded: Sequence[Outcome] = []
        if given:
            current_request().passes = len(given) * len(rows)
            side = self._manifest.preprocessing.image_size
            await current_request().memory.grow_async(len(given) * side * side * 3)  # decoded
            encoded = await self._run_batch(list(given.values()), deadline, rows)
        outcomes = dict(zip(given, encoded, strict=True))
        return [
            content if isinstance(content, PromptServeError) else outcomes[index]
            for index, content in enumerate(contents)
        ]

    async def _fetch(
        self, images: Sequence[ImageItem], deadline: Deadline
    ) -> list[ImageData | PromptServeError]:
        """Replace URLs with the images behind them."""
        urls = {
            i: c.url for i, c in enumerate(i.content for i in images) if isinstance(c, ImageUrl)
        }
        found = await self._urls.fetch_all(list(urls.values()), deadline) if urls else []
        fetched = dict(zip(urls, found, strict=True))
        return [
            fetched[index] if isinstance(image.content, ImageUrl) else image.content
            for index, image in enumerate(images)
        ]

    async def _run_batch(
        self, given: Sequence[ImageData], deadline: Deadline, rows: Sequence[ImageRows | None]
    ) -> list[Outcome]:
        future = self._batcher.submit(given, deadline.at, rows)
        left_s = max(0.0, deadline.at - time.monotonic())
        expiry = asyncio.get_running_loop().call_later(left_s, self._batcher.expire, future)
        try:
            # Canceled when the client disconnects; its images then leave the queue.
            return await self._results.of(future)
        finally:
            expiry.cancel()

    def _check_images(self, images: Sequence[ImageItem]) -> None:
        _check_some(images, "image", "file parts named 'image' (multipart/form-data)")
        check_count("images", len(images), self._settings.max_images)

    def _check_embeddings(
        self, embeddings: Sequence[EmbeddingItem], fingerprint: str | None
    ) -> None:
        _check_some(embeddings, "embedding", "JSON with 'embeddings', or an array (N, width)")
        check_count("embeddings", len(embeddings), self._settings.max_embeddings)
        served = self._manifest.backbone
        if fingerprint is not None and fingerprint != served.fingerprint:
            raise BackboneMismatch(
                f"The embeddings were made by a backbone with the fingerprint "
                f"{fingerprint[:12]!r}, but this server runs {served.id!r} "
                f"({served.fingerprint[:12]}). Embed the images here.",
                learned_on=fingerprint[:64],
                served=served.id,
            )


async def _contents(
    embeddings: Sequence[EmbeddingItem], rows: Sequence[ImageRows | None]
) -> list[Outcome]:
    """Return embeddings (1, E) as ``Classifier._features`` does; none has vectors of a prompt."""
    outcomes: list[Outcome] = [
        item.content if isinstance(item.content, PromptServeError) else item.content[np.newaxis]
        for item in embeddings
    ]
    raise_if_all_failed(embeddings, outcomes)
    return outcomes


def _check_some(items: Sequence[object], what: str, form: str) -> None:
    if not items:
        raise RequestInvalid(f"The request has no {what}. Send one or more: {form}.")
