"""The request flow: resolve tasks -> fetch URLs -> batch -> image features -> logits -> answer.

Everything that blocks runs in threads; the event loop only waits.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from prompt_serve.bundle import Manifest
from prompt_serve.errors import (
    BackboneMismatch,
    PromptServeError,
    RequestInvalid,
    RequestTooLarge,
    TaskNotFound,
)
from prompt_serve.schemas import ClassifyAnswer
from prompt_serve.service.inference.batcher import Batcher, ImageData, Outcome
from prompt_serve.service.inference.predictions import (
    NamedTasks,
    image_results,
    labels_given,
    raise_if_all_failed,
)
from prompt_serve.service.inference.requests import (
    EVERY_TASK,
    Deadline,
    EmbeddingItem,
    ImageItem,
    ImageUrl,
    TaskSelector,
)
from prompt_serve.service.inference.url_fetcher import UrlImageLoader
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current_request
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.resolver import TaskResolver
from prompt_serve.service.worker_threads import WorkerThreads

# Scoring that takes more than about a millisecond runs in a thread. Its cost is counted in
# multiplications; selecting the best classes of one image and task costs as much as so many.
_MAX_COST_IN_LOOP = 2_000_000
_COST_PER_PREDICTION = 20_000


class Classifier:
    """Answers classify, embed and score requests.

    Args:
        settings: limits of requests.
        manifest: of the backbone that runs here.
        batcher: decodes and encodes images.
        registry: finds the tasks of a tag.
        resolver: finds the tasks of names.
        threads: for everything that blocks.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        *,
        batcher: Batcher,
        registry: Registry,
        resolver: TaskResolver,
        threads: WorkerThreads,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._batcher = batcher
        self._registry = registry
        self._resolver = resolver
        self._threads = threads
        self._urls = UrlImageLoader(settings)

    async def classify(
        self,
        images: Sequence[ImageItem],
        selection: TaskSelector,
        top_k: int,
        deadline: Deadline | None = None,
    ) -> ClassifyAnswer:
        """Classify every image with every task; each image is encoded once.

        An image that cannot be read becomes a result with an error. If all of them fail, the error
        of the first is raised, with all errors in its ``errors``.

        Raises:
            RequestInvalid, RequestTooLarge: no images, no tasks, or more than the limits allow.
            TaskNotFound: one of the tasks does not exist, or no task has the tag.
            Overloaded: the queue is full.
        """
        self._check_images(images)
        tasks = await self._tasks(selection, len(images), top_k)
        outcomes = await self._encode(images, deadline or self.deadline())
        raise_if_all_failed(images, outcomes)
        return await self._score(images, outcomes, tasks, top_k)

    async def embed(
        self, images: Sequence[ImageItem], deadline: Deadline | None = None
    ) -> list[Outcome]:
        """Return the unit-length features of every image, or its error.

        Raises:
            RequestInvalid, RequestTooLarge, Overloaded: as ``classify``.
        """
        self._check_images(images)
        outcomes = await self._encode(images, deadline or self.deadline())
        raise_if_all_failed(images, outcomes)
        return outcomes

    async def score(
        self,
        embeddings: Sequence[EmbeddingItem],
        selection: TaskSelector,
        top_k: int,
        fingerprint: str | None = None,
    ) -> ClassifyAnswer:
        """Classify images that were embedded before.

        Raises:
            RequestInvalid, RequestTooLarge, TaskNotFound: as ``classify``.
            BackboneMismatch: ``fingerprint`` is not that of the backbone that runs here.
        """
        _check_some(embeddings, "embedding", "JSON with 'embeddings', or an array (N, width)")
        _check_count("embeddings", len(embeddings), self._settings.max_embeddings)
        self._check_fingerprint(fingerprint)
        tasks = await self._tasks(selection, len(embeddings), top_k)
        outcomes = [item.content for item in embeddings]
        raise_if_all_failed(embeddings, outcomes)
        return await self._score(embeddings, outcomes, tasks, top_k)

    def deadline(self, header: str | None = None) -> Deadline:
        """Return the deadline of a request that starts now: as its header says, at most the
        service's own limit."""
        return Deadline.from_header(header, self._settings.request_timeout_s)

    def check_room(self) -> None:
        """Raise Overloaded if the queue has no room for one more image, before its body is read."""
        self._batcher.check_room(1, 0)

    async def _tasks(self, selection: TaskSelector, n_images: int, top_k: int) -> NamedTasks:
        """Resolve the selected tasks, within the limits."""
        if top_k < 1:
            raise RequestInvalid(f"top_k is {top_k}; expected 1 or more.", top_k=top_k)
        if not selection.names and not selection.tags:
            raise RequestInvalid(
                "The request names no task. Give one or more 'task' or 'tag' fields (or query "
                "parameters); task=* means all."
            )
        settings = self._settings
        _check_count("tasks", len(selection.names), settings.max_tasks)
        _check_count("tags", len(selection.tags), settings.max_tasks)
        context = current_request()
        context.images, context.tasks = n_images, len(selection.names)
        names = selection.names
        if selection.tags or EVERY_TASK in names:
            with context.timings.during("registry"):
                names = await self._threads.read(self._names, selection)
        context.tasks = len(names)
        _check_count("tasks", len(names), settings.max_tasks)
        scores = n_images * len(names) * top_k
        _check_count("scores (images x tasks x top_k)", scores, settings.max_scores)
        with context.timings.during("registry"):
            tasks = await self._threads.read(self._resolver.resolve, names)
        classes = n_images * sum(len(task.class_names) for task in tasks)
        _check_count("classes (images x classes of tasks)", classes, settings.max_scored_classes)
        return list(zip(names, tasks, strict=True))

    def _names(self, selection: TaskSelector) -> Sequence[str]:
        """Return the given names, then the tasks of this backbone that tags and ``*`` add."""
        fingerprint = self._manifest.backbone.fingerprint
        added: list[str] = []
        for tag in selection.tags:
            of_tag = self._registry.names_of_backbone(fingerprint, tag)
            if not of_tag:
                message = f"No task of the backbone that runs here has the tag {tag[:200]!r}."
                raise TaskNotFound(message, name=tag[:200], loaded=())
            added += of_tag
        if EVERY_TASK in selection.names:
            added += self._registry.names_of_backbone(fingerprint)
            if not added:
                message = "There are no tasks of the backbone that runs here yet."
                raise TaskNotFound(message, name=EVERY_TASK, loaded=())
        named = [name for name in selection.names if name != EVERY_TASK]
        return [*named, *(name for name in dict.fromkeys(added) if name not in set(named))]

    async def _encode(self, images: Sequence[ImageItem], deadline: Deadline) -> list[Outcome]:
        """Encode every image; those that are errors already keep their errors."""
        current_request().images = len(images)
        contents = await self._fetch(images, deadline)
        given = {i: c for i, c in enumerate(contents) if not isinstance(c, PromptServeError)}
        encoded: Sequence[Outcome] = []
        if given:
            encoded = await self._run_batch(list(given.values()), deadline)
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

    async def _run_batch(self, given: Sequence[ImageData], deadline: Deadline) -> list[Outcome]:
        future = self._batcher.submit(given, deadline.at)
        left_s = max(0.0, deadline.at - time.monotonic())
        expiry = asyncio.get_running_loop().call_later(left_s, self._batcher.expire, future)
        try:
            # Canceled when the client disconnects; its images then leave the queue.
            return await asyncio.wrap_future(future)
        finally:
            expiry.cancel()

    async def _score(
        self,
        items: Sequence[ImageItem] | Sequence[EmbeddingItem],
        outcomes: Sequence[Outcome],
        tasks: NamedTasks,
        top_k: int,
    ) -> ClassifyAnswer:
        score = partial(image_results, items, outcomes, tasks, top_k, self._manifest.logit_scale)
        multiplications = sum(task.class_features.size for _, task in tasks)
        cost = len(items) * (multiplications + len(tasks) * _COST_PER_PREDICTION)
        with metrics.score_seconds.time(), current_request().timings.during("score"):
            results = score() if cost <= _MAX_COST_IN_LOOP else await self._threads.score(score)
        _check_count("labels", labels_given(results), self._settings.max_scores)
        return ClassifyAnswer(results=results, backbone=self._manifest.backbone.id)

    def _check_images(self, images: Sequence[ImageItem]) -> None:
        _check_some(images, "image", "file parts named 'image' (multipart/form-data)")
        _check_count("images", len(images), self._settings.max_images)

    def _check_fingerprint(self, fingerprint: str | None) -> None:
        served = self._manifest.backbone
        if fingerprint is not None and fingerprint != served.fingerprint:
            raise BackboneMismatch(
                f"The embeddings were made by a backbone with the fingerprint "
                f"{fingerprint[:12]!r}, but this server runs {served.id!r} "
                f"({served.fingerprint[:12]}). Embed the images here.",
                learned_on=fingerprint[:64],
                served=served.id,
            )


def _check_some(items: Sequence[object], what: str, form: str) -> None:
    if not items:
        raise RequestInvalid(f"The request has no {what}. Send one or more: {form}.")


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestTooLarge(
            f"The request asks for {count:,} {what}; at most {limit:,} are answered at once. "
            f"Split it into several requests.",
            limit=limit,
            count=count,
        )
