"""The service without HTTP: one bundle, one engine, one batcher, one registry.

``classify`` is the whole request flow: resolve tasks -> batch -> image features -> logits of each
task -> answer. Everything that blocks runs in threads; the event loop only waits.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from prompt_serve import __version__
from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.errors import (
    DeadlineExceeded,
    NotReady,
    PromptServeError,
    RequestInvalid,
    RequestTooLarge,
)
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.schemas import (
    ClassifyAnswer,
    ClassScore,
    ImageResult,
    ServiceInfo,
    TaskInfo,
    TaskPrediction,
    ZeroShotTask,
)
from prompt_serve.scoring import class_logits, is_unknown, top_classes
from prompt_serve.service.batcher import Batcher, Outcome
from prompt_serve.service.cold_start import ColdStart
from prompt_serve.service.database import Database
from prompt_serve.service.engine import Engine
from prompt_serve.service.health import Health
from prompt_serve.service.problems import problem_of
from prompt_serve.service.registry import Registry
from prompt_serve.service.settings import Settings, available_cores
from prompt_serve.service.tasks import Task, TaskStore
from prompt_serve.types import FloatArray

# A request past its deadline is answered by the batcher; this catches a batch that hangs.
_GRACE_S = 5.0
_MAX_SCORES = 1_000_000  # entries of one answer: images x tasks x top_k
# Scoring that takes more than about a millisecond leaves the event loop: so many multiplications,
# of which sorting out the best classes of one image and task counts as some.
_SCORED_IN_LOOP = 2_000_000
_COST_OF_A_PREDICTION = 100_000

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """One image of a request."""

    data: bytes
    filename: str | None = None


class Core:
    """Everything a running service consists of.

    Raises:
        BundleInvalid, ProviderUnavailable, NotReady: it cannot run as the settings say.
    """

    def __init__(self, settings: Settings) -> None:
        self.cold_start = ColdStart()
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
        self.registry = Registry(self.database)
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
            self.engine.encode_a_name,
            lambda: self.engine.last_text_success,
            self.registry.revision,
            settings.database,
            self.engine.slowest_batch_s,
        )
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="registry")
        # One at a time: encoding class names takes the cores that images need.
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")
        n_tasks = self.registry.count()
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
        self._uploads.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.database.close()

    async def classify(
        self, images: Sequence[ImageFile], task_names: Sequence[str], top_k: int
    ) -> ClassifyAnswer:
        """Classify every image by every task.

        An image that cannot be read becomes a result with an error. When all of them fail, the
        first one's error is raised, with all in its ``errors``.

        Raises:
            RequestInvalid, RequestTooLarge: no images, no tasks, or more than the limits allow.
            TaskNotFound: one of the tasks does not exist.
            Overloaded: the queue is full.
        """
        self._check_request(len(images), len(task_names), top_k)
        tasks = await self.reading(self.tasks.resolve, task_names)
        outcomes = await self._encode([image.data for image in images])
        named = list(zip(task_names, tasks, strict=True))
        score = partial(_results, images, outcomes, named, top_k, self._logit_scale)
        work = sum(t.class_features.size + _COST_OF_A_PREDICTION for t in tasks) * len(images)
        results = score() if work <= _SCORED_IN_LOOP else await self.reading(score)
        if all(result.error is not None for result in results):
            raise _all_failed(outcomes, results)
        return ClassifyAnswer(results=results, backbone=self.bundle.manifest.backbone.id)

    async def upload(self, name: str, data: bytes) -> tuple[TaskInfo, bool]:
        """See ``TaskStore.upload``."""
        return await self._in(self._uploads, self.tasks.upload, name, data)

    async def add_zero_shot(self, wanted: ZeroShotTask) -> tuple[TaskInfo, bool]:
        """See ``TaskStore.add_zero_shot``."""
        return await self._in(self._uploads, self.tasks.add_zero_shot, wanted)

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
    def _logit_scale(self) -> float:
        return self.bundle.manifest.logit_scale

    async def _encode(self, images: Sequence[bytes]) -> list[Outcome]:
        timeout_s = self.settings.request_timeout_s
        future = self.batcher.submit(images, time.monotonic() + timeout_s)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s + _GRACE_S)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"No answer within {timeout_s:g} s. Send fewer images at once.",
                timeout_s=timeout_s,
            ) from error

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., _T], *args: object) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            raise NotReady("The service is stopping.", retry_after_s=1.0) from error

    def _check_request(self, n_images: int, n_tasks: int, top_k: int) -> None:
        if n_images == 0:
            raise RequestInvalid(
                "The request has no image. Send one or more file parts named 'image' "
                "(multipart/form-data), or an image as the body."
            )
        if n_tasks == 0:
            raise RequestInvalid(
                "The request names no task. Give one or more 'task' fields (or query parameters)."
            )
        if top_k < 1:
            raise RequestInvalid(f"top_k is {top_k}; wanted 1 or more.", top_k=top_k)
        settings = self.settings
        _check_count("images", n_images, settings.max_images)
        _check_count("tasks", n_tasks, settings.max_tasks)
        _check_count("scores (images x tasks x top_k)", n_images * n_tasks * top_k, _MAX_SCORES)


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestTooLarge(
            f"The request asks for {count:,} {what}; at most {limit:,} are answered at once. "
            f"Split it into several requests.",
            limit=limit,
            count=count,
        )


def _results(
    images: Sequence[ImageFile],
    outcomes: Sequence[Outcome],
    tasks: Sequence[tuple[str, Task]],
    top_k: int,
    logit_scale: float,
) -> list[ImageResult]:
    """One result an image. All images of the request go through each task at once."""
    good = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, np.ndarray)]
    predictions: dict[int, list[TaskPrediction]] = {index: [] for index in good}
    if good:
        image_features: FloatArray = np.stack([np.asarray(outcomes[index]) for index in good])
        for name, task in tasks:
            logits = class_logits(image_features, task.class_features, logit_scale)
            for index, row in zip(good, logits, strict=True):
                predictions[index].append(_prediction(name, task, row, top_k))
    return [
        ImageResult(
            index=index,
            filename=image.filename,
            predictions=predictions.get(index),
            error=problem_of(outcome) if isinstance(outcome, PromptServeError) else None,
        )
        for index, (image, outcome) in enumerate(zip(images, outcomes, strict=True))
    ]


def _prediction(name: str, task: Task, logits: FloatArray, top_k: int) -> TaskPrediction:
    best = top_classes(logits, task.class_names, top_k, temperature=task.temperature)
    return TaskPrediction(
        task=name,
        version=task.version,
        unknown=is_unknown(best[0].probability, task.unknown_below),
        classes=[ClassScore(**vars(prediction)) for prediction in best],
    )


def _all_failed(outcomes: Sequence[Outcome], results: Sequence[ImageResult]) -> PromptServeError:
    """The first image's error, carrying those of all."""
    first = outcomes[0]
    assert isinstance(first, PromptServeError)  # noqa: S101 (all outcomes are errors here)
    if len(outcomes) == 1:
        return first
    errors = [
        {"index": result.index, "filename": result.filename, **result.error.model_dump()}
        for result in results
        if result.error is not None
    ]
    message = f"None of the {len(outcomes)} images could be classified; the first: {first.message}"
    return type(first)(message, **{**first.facts, "errors": errors})
