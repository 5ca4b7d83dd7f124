"""The service without HTTP: one bundle, one engine, one batcher, one registry.

``classify`` is the whole request flow: resolve tasks -> fetch what is behind URLs -> batch -> image
features -> logits of each task -> answer. Everything that blocks runs in threads; the event loop
only waits.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from prompt_serve import __version__
from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.errors import (
    BackboneMismatch,
    NotReady,
    Overloaded,
    PromptServeError,
    RequestInvalid,
    RequestTooLarge,
    TaskNotFound,
)
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.schemas import ClassifyAnswer, ServiceInfo
from prompt_serve.service.health import Health
from prompt_serve.service.inference.batcher import Batcher, ImageData, Outcome
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.inference.predictions import (
    NamedTasks,
    image_results,
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
from prompt_serve.service.observability.startup_timer import StartupTimer
from prompt_serve.service.request_context import current_request
from prompt_serve.service.settings import Settings, available_cores
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.store import TaskStore

# Scoring that takes more than about a millisecond leaves the event loop: so many multiplications,
# of which sorting out the best classes of one image and task counts as some.
_SCORED_IN_LOOP = 2_000_000
_COST_OF_A_PREDICTION = 20_000

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Core:
    """Everything a running service consists of.

    Raises:
        BundleInvalid, ProviderUnavailable, NotReady: it cannot run as the settings say.
    """

    def __init__(self, settings: Settings) -> None:
        self.cold_start = StartupTimer()
        self.settings = settings
        self.bundle: Bundle = open_bundle(settings.bundle_path)
        self.cold_start.done("bundle")
        self.engine = Engine(
            self.bundle,
            cuda_device=settings.cuda_device,
            threads=settings.inference_threads or available_cores(),
            max_batch=settings.batch_size,
        )
        self.cold_start.done("sessions")
        self.engine.warm_up()
        self.cold_start.done("warm-up")
        self.database = Database(settings.database)
        self.registry = Registry(self.database, keep_versions=settings.keep_versions)
        self.tasks = TaskStore(
            self.registry, self.bundle, self.engine.encode_text, settings.feature_cache_bytes
        )
        self.batcher = Batcher(
            partial(
                pixels_from_bytes,
                preprocessing=self.bundle.manifest.preprocessing,
                max_pixels=settings.max_image_pixels,
            ),
            self.engine.encode_images,
            max_batch=settings.batch_size,
            max_queue_images=settings.max_queue_images,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_delay_ms=settings.max_queue_delay_ms,
            decode_threads=settings.decode_threads or min(16, available_cores()),
        )
        self.health = Health(
            self.batcher,
            self.engine.check_text_encoder,
            lambda: self.engine.last_text_success,
            self.registry.revision,
            settings.database,
            self.engine.slowest_batch_s,
        )
        self.urls = UrlImageLoader(settings)
        self._scorers = ThreadPoolExecutor(2, thread_name_prefix="score")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="registry")
        # They wait for their turn: class names are encoded in one thread, of low priority.
        self._changers = ThreadPoolExecutor(8, thread_name_prefix="change")
        self._changes = 0  # being made, or waiting
        n_tasks = self.registry.count()
        self.tasks.load_pinned()
        self.cold_start.done("registry")
        _log.info(
            "ready in %s: %s (%s) on %s, batches of up to %d, %d tasks",
            self.cold_start,
            self.bundle.manifest.backbone.id,
            self.bundle.manifest.precision,
            self.engine.provider,
            settings.batch_size,
            n_tasks,
        )

    def close(self) -> None:
        """Finish what was admitted, then stop all threads."""
        self.batcher.stop(self.settings.shutdown_timeout_s)
        self.health.close()
        self._changers.shutdown(wait=True, cancel_futures=True)
        self.tasks.close()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._scorers.shutdown(wait=True, cancel_futures=True)
        self.database.close()

    async def classify(
        self,
        images: Sequence[ImageItem],
        selection: TaskSelector,
        top_k: int,
        deadline: Deadline | None = None,
    ) -> ClassifyAnswer:
        """Classify every image by every task; each image is encoded once.

        An image that cannot be read becomes a result with an error. When all of them fail, the
        first one's error is raised, with all in its ``errors``.

        Raises:
            RequestInvalid, RequestTooLarge: no images, no tasks, or more than the limits allow.
            TaskNotFound: one of the tasks does not exist, or no task has the tag.
            Overloaded: the queue is full.
        """
        _check_some(images, "image", "file parts named 'image' (multipart/form-data)")
        _check_count("images", len(images), self.settings.max_images)
        tasks = await self._tasks(selection, len(images), top_k)
        outcomes = await self._encode(images, deadline or self.deadline())
        raise_if_all_failed(images, outcomes)
        return await self._scored(images, outcomes, tasks, top_k)

    async def embed(
        self, images: Sequence[ImageItem], deadline: Deadline | None = None
    ) -> list[Outcome]:
        """Features of unit length of every image, or its error; raises as ``classify`` does."""
        _check_some(images, "image", "file parts named 'image' (multipart/form-data)")
        _check_count("images", len(images), self.settings.max_images)
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
        """``classify`` for images that were embedded before.

        Raises:
            BackboneMismatch: ``fingerprint`` is not that of the backbone that runs here.
        """
        _check_some(embeddings, "embedding", "JSON with 'embeddings', or an array (N, width)")
        _check_count("embeddings", len(embeddings), self.settings.max_embeddings)
        self._check_fingerprint(fingerprint)
        tasks = await self._tasks(selection, len(embeddings), top_k)
        outcomes = [item.content for item in embeddings]
        raise_if_all_failed(embeddings, outcomes)
        return await self._scored(embeddings, outcomes, tasks, top_k)

    def deadline(self, header: str | None = None) -> Deadline:
        """From now on: what a request asks for in its header, the settings' limit at most."""
        return Deadline.from_header(header, self.settings.request_timeout_s)

    def check_room(self) -> None:
        """Raise Overloaded where one image more has no room: before its body is read."""
        self.batcher.check_room(1, 0)

    async def changing(self, function: Callable[..., _T], *args: object) -> _T:
        """Run a change of tasks in a thread; it may wait for class features to be computed.

        Raises:
            Overloaded: so many changes wait already that their bodies would fill the memory.
        """
        if self._changes >= self.settings.max_changes:
            raise Overloaded(
                f"{self._changes} changes of tasks are being made or wait. Try again later.",
                retry_after_s=2.0,
            )
        self._changes += 1
        try:
            return await self._in(self._changers, function, *args)
        finally:
            self._changes -= 1

    async def reading(self, function: Callable[..., _T], *args: object) -> _T:
        """Run something that blocks for a short time in a thread."""
        return await self._in(self._readers, function, *args)

    async def info(self) -> ServiceInfo:
        """What runs here."""
        manifest = self.bundle.manifest
        revision, count = await self.reading(
            lambda: (self.registry.revision(), self.registry.count())
        )
        return ServiceInfo(
            version=__version__,
            backbone=manifest.backbone,
            precision=manifest.precision,
            image_size=manifest.preprocessing.image_size,
            logit_scale=manifest.logit_scale,
            provider=self.engine.provider,
            text_provider=self.engine.text_provider,
            device=self.settings.device,
            runtime=self.engine.runtime,
            cold_start_s=self.cold_start.seconds,
            tasks=count,
            revision=revision,
            limits=self.settings.limits,
        )

    @property
    def image_size(self) -> int:
        """S, side of the square that the image tower sees."""
        return self.bundle.manifest.preprocessing.image_size

    @property
    def embedding_width(self) -> int:
        """E, numbers of an embedding."""
        return self.bundle.manifest.backbone.embed_dim

    @property
    def _logit_scale(self) -> float:
        return self.bundle.manifest.logit_scale

    async def _tasks(self, selection: TaskSelector, n_images: int, top_k: int) -> NamedTasks:
        """The tasks that are meant, within the limits."""
        if top_k < 1:
            raise RequestInvalid(f"top_k is {top_k}; wanted 1 or more.", top_k=top_k)
        if not selection.names and not selection.tags:
            raise RequestInvalid(
                "The request names no task. Give one or more 'task' or 'tag' fields (or query "
                "parameters); task=* means all."
            )
        settings = self.settings
        _check_count("tasks", len(selection.names), settings.max_tasks)
        _check_count("tags", len(selection.tags), settings.max_tasks)
        request = current_request()
        request.images, request.tasks = n_images, len(selection.names)
        names = selection.names
        if selection.tags or EVERY_TASK in names:
            with request.timings.during("registry"):
                names = await self.reading(self._names, selection)
        request.tasks = len(names)
        _check_count("tasks", len(names), settings.max_tasks)
        scores = n_images * len(names) * top_k
        _check_count("scores (images x tasks x top_k)", scores, settings.max_scores)
        with request.timings.during("registry"):
            tasks = await self.reading(self.tasks.resolve, names)
        classes = n_images * sum(len(task.class_names) for task in tasks)
        _check_count("classes (images x classes of tasks)", classes, settings.max_scored_classes)
        return list(zip(names, tasks, strict=True))

    def _names(self, selection: TaskSelector) -> Sequence[str]:
        """What was named, then what tags and ``*`` add to it of what this backbone serves."""
        fingerprint = self.bundle.manifest.backbone.fingerprint
        added: list[str] = []
        for tag in selection.tags:
            of_tag = self.registry.names_of_backbone(fingerprint, tag)
            if not of_tag:
                message = f"No task of the backbone that runs here has the tag {tag[:200]!r}."
                raise TaskNotFound(message, name=tag[:200], loaded=())
            added += of_tag
        if EVERY_TASK in selection.names:
            added += self.registry.names_of_backbone(fingerprint)
            if not added:
                message = "There are no tasks of the backbone that runs here yet."
                raise TaskNotFound(message, name=EVERY_TASK, loaded=())
        named = [name for name in selection.names if name != EVERY_TASK]
        return [*named, *(name for name in dict.fromkeys(added) if name not in set(named))]

    async def _encode(self, images: Sequence[ImageItem], deadline: Deadline) -> list[Outcome]:
        """The outcome of every image; those that are errors already are not run."""
        current_request().images = len(images)
        contents = await self._fetched(images, deadline)
        given = {i: c for i, c in enumerate(contents) if not isinstance(c, PromptServeError)}
        encoded: Sequence[Outcome] = []
        if given:
            encoded = await self._run(list(given.values()), deadline)
        outcomes = dict(zip(given, encoded, strict=True))
        return [
            content if isinstance(content, PromptServeError) else outcomes[index]
            for index, content in enumerate(contents)
        ]

    async def _fetched(
        self, images: Sequence[ImageItem], deadline: Deadline
    ) -> list[ImageData | PromptServeError]:
        """Images as they came, those behind URLs fetched."""
        urls = {
            i: c.url for i, c in enumerate(i.content for i in images) if isinstance(c, ImageUrl)
        }
        found = await self.urls.fetch_all(list(urls.values()), deadline) if urls else []
        fetched = dict(zip(urls, found, strict=True))
        return [
            fetched[index] if isinstance(image.content, ImageUrl) else image.content
            for index, image in enumerate(images)
        ]

    async def _run(self, given: Sequence[ImageData], deadline: Deadline) -> list[Outcome]:
        future = self.batcher.submit(given, deadline.at)
        left_s = max(0.0, deadline.at - time.monotonic())
        expiry = asyncio.get_running_loop().call_later(left_s, self.batcher.expire, future)
        try:
            # Cancelled when the client has gone, and the images leave the queue with it.
            return await asyncio.wrap_future(future)
        finally:
            expiry.cancel()

    async def _scored(
        self,
        items: Sequence[ImageItem] | Sequence[EmbeddingItem],
        outcomes: Sequence[Outcome],
        tasks: NamedTasks,
        top_k: int,
    ) -> ClassifyAnswer:
        score = partial(image_results, items, outcomes, tasks, top_k, self._logit_scale)
        multiplications = sum(task.class_features.size for _, task in tasks)
        work = len(items) * (multiplications + len(tasks) * _COST_OF_A_PREDICTION)
        with metrics.score_seconds.time(), current_request().timings.during("score"):
            results = score() if work <= _SCORED_IN_LOOP else await self._in(self._scorers, score)
        return ClassifyAnswer(results=results, backbone=self.bundle.manifest.backbone.id)

    def _check_fingerprint(self, fingerprint: str | None) -> None:
        here = self.bundle.manifest.backbone
        if fingerprint is not None and fingerprint != here.fingerprint:
            raise BackboneMismatch(
                f"The embeddings were made by a backbone with the fingerprint "
                f"{fingerprint[:12]!r}, but this server runs {here.id!r} "
                f"({here.fingerprint[:12]}). Embed the images here.",
                learned_on=fingerprint[:64],
                served=here.id,
            )

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., _T], *args: object) -> _T:
        # The thread knows the request as well: whose it is, for the audit log.
        run = copy_context().run
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, run, function, *args)
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            raise NotReady("The service is stopping.", retry_after_s=1.0) from error


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
