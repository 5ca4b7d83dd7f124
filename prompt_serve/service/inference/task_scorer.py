"""Select the tasks of a request and score image features by them.

Scores are computed and written in chunks, and other requests are served between two of them. A JSON
answer holds at most ``max_tasks`` tasks; its chunks are images. For NDJSON, and for the best tasks
of all, chunks are tasks, any number of them: only the names and versions of all tasks are in memory
at once.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from prompt_serve.bundle import Manifest
from prompt_serve.errors import (
    PromptUnsupported,
    RequestInvalid,
    RequestTooLarge,
    TaskNotFound,
)
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.schemas import ClassifyAnswer, LastLine
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.inference.predictions import (
    BestTasks,
    error_lines,
    json_line,
    labels_given,
    prediction_lines,
    results_json,
)
from prompt_serve.service.inference.requests import (
    EVERY_TASK,
    EmbeddingItem,
    ImageItem,
    TaskQuery,
    TaskSelector,
)
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.shared_read import SharedRead
from prompt_serve.service.settings import Settings
from prompt_serve.service.tasks.resolver import KnownVersions, TaskResolver
from prompt_serve.service.worker_threads import WorkerThreads
from prompt_serve.tasks.image_passes import ImagePasses
from prompt_serve.tasks.predictions import NamedTasks, Predictions, predictions_of_passes
from prompt_serve.types import FloatArray

NamedVersions = Sequence[tuple[str, str]]  # requested name, and the version it points at
Items = Sequence[ImageItem | EmbeddingItem]
Encode = Callable[[Sequence[ImageRows | None]], Awaitable[list[Outcome]]]  # rows of the passes

# Scoring that takes more than about a millisecond runs in a thread. Its cost is counted in
# multiplications; selecting the best classes of one image and task costs as much as so many.
_MAX_COST_IN_LOOP = 2_000_000
_COST_PER_PREDICTION = 20_000
# A chunk takes about 20 ms, and holds the features of so many tasks.
_TASKS_PER_CHUNK = 64
_SCORES_PER_CHUNK = 2_000  # images x tasks x top_k
_BYTES_PER_SCORE = 600  # of a score in an answer: as an object, and in JSON

_T = TypeVar("_T")


class TaskScorer:
    """Finds the tasks of queries and scores features by them.

    Args:
        settings: limits of requests.
        manifest: of the backbone that runs here.
        resolver: finds the tasks of names and tags.
        threads: for everything that blocks.
        known: reads what the resolver knows, for many requests at once.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        *,
        resolver: TaskResolver,
        threads: WorkerThreads,
        known: SharedRead[KnownVersions],
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._resolver = resolver
        self._threads = threads
        self._known = known

    async def answer(
        self, items: Items, query: TaskQuery, deadline: Deadline, encode: Encode
    ) -> bytes:
        """Score all items by a limited number of tasks, or by the best of any number.

        Args:
            items: images or embeddings.
            query: the tasks; with ``top_tasks``, each item has that many of them.
            deadline: of the request.
            encode: computes the features of every pass; called once the tasks are known to exist.

        Returns:
            JSON of a ``ClassifyAnswer``.

        Raises:
            RequestInvalid, RequestTooLarge: no tasks, or more than the limits allow.
            TaskNotFound: one of the tasks does not exist, or no task has the tag.
            DeadlineExceeded: not everything was scored in time.
        """
        if query.top_tasks is None:
            tasks = await self._load_all(items, query)
            passes = ImagePasses.of(task.image_rows for _, task in tasks)
            self._check_passes(len(items), len(passes.rows))
            outcomes = await encode(passes.rows)
            multiplications = sum(task.class_features.size for _, task in tasks)
            cost = multiplications + len(tasks) * _COST_PER_PREDICTION
            of_item = len(tasks) * query.top_k

            def predict(features: Sequence[FloatArray]) -> Predictions:
                return self._predictions(_Encoded(features, passes), tasks, query.top_k)
        else:
            named = await self._select_any(items, query)
            passes = await self._passes(len(items), named)
            outcomes = await encode(passes.rows)
            encoded = _Encoded(_features_of(outcomes), passes)
            best = iter(await self._best(encoded, named, query, deadline))
            cost, of_item = query.top_tasks * _COST_PER_PREDICTION, query.top_tasks * query.top_k

            def predict(features: Sequence[FloatArray]) -> Predictions:
                return list(islice(best, len(features)))

        return await self._json(items, outcomes, predict, _Size(cost, of_item))

    async def _json(
        self,
        items: Items,
        outcomes: Sequence[Outcome],
        predict: Callable[[Sequence[FloatArray]], Predictions],
        of_item: "_Size",
    ) -> bytes:
        """Score items and write their results, in chunks that each wait for a turn.

        Args:
            items: images or embeddings.
            outcomes: features, or error, of each item.
            predict: returns the predictions of the next features; called in their order.
            of_item: largest size of the work for one item.
        """

        def results(start: int, stop: int) -> tuple[bytes, int]:
            some = outcomes[start:stop]
            predictions = predict(_features_of(some))
            written = results_json(items[start:stop], some, predictions, first=start)
            return written, labels_given(predictions)

        threads = None if of_item.cost * len(items) <= _MAX_COST_IN_LOOP else self._threads
        size = max(1, _SCORES_PER_CHUNK // max(1, of_item.scores))
        parts, labels = [], 0
        with current_request().timings.during("score", metrics.score_seconds.observe):
            for start in range(0, len(items), size):
                chunk = partial(results, start, start + size)
                part, more = chunk() if threads is None else await threads.score(chunk)
                parts.append(part)
                labels += more
                check_count("labels", labels, self._settings.max_scores)
        empty = ClassifyAnswer(results=[], backbone=self._manifest.backbone.id)
        head, _, tail = empty.model_dump_json().encode().partition(b"[]")
        return b"".join([head, b"[", b",".join(parts), b"]", tail])

    async def lines(
        self, items: Items, query: TaskQuery, deadline: Deadline, encode: Encode
    ) -> AsyncIterator[bytes]:
        """Select the tasks and encode the items as ``answer`` does, for an answer in NDJSON.

        Returns:
            Lines of the items with errors, lines of all tasks for the other items, task by task
            (with ``top_tasks``: item by item), and the last line. The iterator raises
            DeadlineExceeded if not all tasks are scored in time.
        """
        named = await self._select_any(items, query)
        passes = await self._passes(len(items), named)
        outcomes = await encode(passes.rows)
        return self._lines(items, outcomes, passes, named, query, deadline)

    async def _lines(
        self,
        items: Items,
        outcomes: Sequence[Outcome],
        passes: ImagePasses,
        named: NamedVersions,
        query: TaskQuery,
        deadline: Deadline,
    ) -> AsyncIterator[bytes]:
        encoded = _Encoded(_features_of(outcomes), passes)
        of_features = [
            (index, item.filename)
            for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
            if isinstance(outcome, np.ndarray)
        ]

        def score(tasks: NamedTasks) -> bytes:
            return prediction_lines(of_features, self._predictions(encoded, tasks, query.top_k))

        if len(of_features) < len(items):
            yield error_lines(items, outcomes)
        if query.top_tasks is None:
            per_task = len(of_features) * query.top_k
            async for lines in self._chunks(named, per_task, score, deadline):
                yield lines
        else:
            best = await self._best(encoded, named, query, deadline)
            is_short = query.top_tasks * query.top_k <= _SCORES_PER_CHUNK
            for image, predictions in zip(of_features, best, strict=True):
                write = partial(prediction_lines, [image], [predictions])
                yield write() if is_short else await self._threads.score(write)
        last = LastLine(complete=True, tasks=len(named), backbone=self._manifest.backbone.id)
        yield json_line(last)

    async def _best(
        self, encoded: "_Encoded", named: NamedVersions, query: TaskQuery, deadline: Deadline
    ) -> Predictions:
        images = len(encoded.features)
        best = BestTasks(images, query.top_tasks or len(named))

        def score(tasks: NamedTasks) -> None:
            best.add(self._predictions(encoded, tasks, query.top_k))

        async for _ in self._chunks(named, images * query.top_k, score, deadline):
            pass
        return best.by_image

    def _predictions(self, encoded: "_Encoded", tasks: NamedTasks, top_k: int) -> Predictions:
        return predictions_of_passes(
            encoded.features, encoded.passes, tasks, top_k, self._manifest.logit_scale
        )

    async def rows_of(self, name: str) -> tuple[ImageRows | None]:
        """Return the image vectors of a task; None if it has none.

        Raises:
            TaskNotFound: there is no such task.
        """
        with current_request().timings.during("registry"):
            [task] = await self._threads.read(self._resolver.resolve, [name])
        return (task.image_rows,)

    async def _passes(self, n_images: int, named: NamedVersions) -> ImagePasses:
        """Plan the passes of any number of tasks; only those with image vectors are loaded."""
        prompted = await self._threads.read(self._image_prompts)
        versions = {version: name for name, version in named if version in prompted}
        plain = [None] if any(version not in prompted for _, version in named) else []
        self._check_passes(n_images, len(plain) + len(versions))
        tasks = await self._load([(name, version) for version, name in versions.items()])
        return ImagePasses.of([*plain, *(task.image_rows for _, task in tasks)])

    def _image_prompts(self) -> frozenset[str]:
        """Return the versions with vectors for the image tower that runs here."""
        if self._manifest.image_tower is None:
            return frozenset()
        return self._resolver.image_prompts()

    def _check_passes(self, n_images: int, passes: int) -> None:
        if passes > 1:  # else the limit of images holds
            what = "passes through the image encoder (images x image prompts)"
            check_count(what, n_images * passes, self._settings.limits.max_image_passes or 1)

    async def _chunks(
        self,
        named: NamedVersions,
        scores_per_task: int,
        score: Callable[[NamedTasks], _T],
        deadline: Deadline,
    ) -> AsyncIterator[_T]:
        """Yield what ``score`` returns for each chunk of tasks; it runs in a thread."""
        size = max(1, min(_TASKS_PER_CHUNK, _SCORES_PER_CHUNK // max(1, scores_per_task)))
        for start in range(0, len(named), size):
            deadline.check(start, len(named))
            some = named[start : start + size]
            _, size_bytes = await self._unloaded_sizes(some)
            memory = current_request().memory
            await memory.grow_async(size_bytes)
            tasks = await self._load(some)
            with current_request().timings.during("score", metrics.score_seconds.observe):
                scored = await self._threads.score(partial(score, tasks))
            memory.shrink(size_bytes)
            yield scored

    async def _load_all(self, items: Items, query: TaskQuery) -> NamedTasks:
        """Load the tasks of a JSON answer, within its limits."""
        settings, n_images = self._settings, len(items)
        check_count("tasks", len(query.selector.names), settings.max_tasks, _WAYS_OUT)
        named = await self._select(items, query)
        check_count("tasks", len(named), settings.max_tasks, _WAYS_OUT)
        scores = n_images * len(named) * query.top_k
        check_count("scores (images x tasks x top_k)", scores, settings.max_scores)
        unloaded, size_bytes = await self._unloaded_sizes(named)
        what = "classes (images x classes of tasks)"
        check_count(what, n_images * unloaded, settings.max_scored_classes)
        await current_request().memory.grow_async(size_bytes + scores * _BYTES_PER_SCORE)
        tasks = await self._load(named)
        classes = n_images * sum(len(task.class_names) for _, task in tasks)
        check_count(what, classes, settings.max_scored_classes)
        return tasks

    async def _select_any(self, items: Items, query: TaskQuery) -> NamedVersions:
        """Return any number of tasks, which are loaded later, in chunks."""
        settings, n_images = self._settings, len(items)
        names, top_tasks = query.selector.names, query.top_tasks
        check_count("named tasks", len(names), settings.max_streamed_tasks, _NAMES_WAY_OUT)
        if top_tasks is not None:
            if top_tasks < 1:
                raise RequestInvalid(
                    f"top_tasks is {top_tasks}; expected 1 or more.", top_tasks=top_tasks
                )
            check_count("best tasks (top_tasks)", top_tasks, settings.max_tasks)
        scores = n_images * (top_tasks or 1) * query.top_k
        what = "images x top_k" if top_tasks is None else "images x top_tasks x top_k"
        check_count(f"scores ({what})", scores, settings.max_scores)
        await current_request().memory.grow_async(scores * _BYTES_PER_SCORE)
        return await self._select(items, query)

    async def _select(self, items: Items, query: TaskQuery) -> NamedVersions:
        selector = query.selector
        if query.top_k < 1:
            raise RequestInvalid(f"top_k is {query.top_k}; expected 1 or more.", top_k=query.top_k)
        if not selector.names and not selector.tags:
            raise RequestInvalid(
                "The request names no task. Give one or more 'task' or 'tag' fields (or query "
                "parameters); task=* means all."
            )
        check_count("tags", len(selector.tags), self._settings.max_tasks)
        context = current_request()
        context.images, context.tasks = len(items), len(selector.names)
        embedded = isinstance(items[0], EmbeddingItem)
        with context.timings.during("registry"):
            named = await self._in_memory(selector, embedded)
            if named is None:
                named = await self._threads.read(self._versions, selector, embedded)
        context.tasks = len(named)
        return named

    async def _in_memory(self, selector: TaskSelector, embedded: bool) -> NamedVersions | None:
        """Return what ``_versions`` does, if nothing but the revision has to be read for it."""
        names = selector.names
        if selector.tags or EVERY_TASK in names:
            return None
        if embedded and self._manifest.image_tower is not None:
            return None
        known = await self._known.result()
        versions = None if known is None else self._resolver.known_versions(known, names)
        return None if versions is None else list(zip(names, versions, strict=True))

    def _versions(self, selector: TaskSelector, embedded: bool) -> NamedVersions:
        """Return the given names, then, sorted by name, the tasks of this backbone that tags and
        ``*`` add.

        With ``embedded`` they score features of the plain image tower: tasks that change it are not
        added.

        Raises:
            PromptUnsupported: one of the names is such a task.
        """
        added: dict[str, str] = {}
        for tag in selector.tags:
            of_tag = self._resolver.versions_of_backbone(tag)
            if not of_tag:
                message = f"No task of the backbone that runs here has the tag {tag[:200]!r}."
                raise TaskNotFound(message, name=tag[:200], loaded=())
            added |= of_tag
        if EVERY_TASK in selector.names:
            added |= self._resolver.versions_of_backbone()
            if not added:
                message = "There are no tasks of the backbone that runs here yet."
                raise TaskNotFound(message, name=EVERY_TASK, loaded=())
        names = [name for name in selector.names if name != EVERY_TASK]
        named = list(zip(names, self._resolver.versions(names), strict=True))
        if embedded and (prompted := self._image_prompts()):
            _refuse_image_prompts(named, prompted)
            added = {name: version for name, version in added.items() if version not in prompted}
        return [*named, *((name, added[name]) for name in sorted(added.keys() - set(names)))]

    async def _unloaded_sizes(self, named: NamedVersions) -> tuple[int, int]:
        """Return the classes, and the memory, of the tasks that have to be loaded."""
        unloaded = self._resolver.unloaded([version for _, version in named])
        if not unloaded:
            return 0, 0
        return await self._threads.read(self._resolver.loading_sizes, unloaded)

    async def _load(self, named: NamedVersions) -> NamedTasks:
        with current_request().timings.during("registry"):
            tasks = self._resolver.loaded([version for _, version in named])
            if tasks is None:
                tasks = await self._threads.read(self._resolver.load, named)
        return [(name, task) for (name, _), task in zip(named, tasks, strict=True)]


class _Size(NamedTuple):
    """Size of some work: its cost as ``_MAX_COST_IN_LOOP`` counts it, and the scores of it."""

    cost: int
    scores: int


@dataclass(frozen=True)
class _Encoded:
    """Features (V, E) of the images without an error, a row for each pass."""

    features: Sequence[FloatArray]
    passes: ImagePasses


def _refuse_image_prompts(named: NamedVersions, prompted: frozenset[str]) -> None:
    refused = [name for name, version in named if version in prompted]
    if refused:
        raise PromptUnsupported(
            f"Task {refused[0]!r} has learned vectors for the image tower, which change the "
            f"features of an image; embeddings of the plain tower say nothing to it. Send the "
            f"images to /v1/classify."
        )


_SPLIT = "Split it into several requests."
_NAMES_WAY_OUT = f"Select them by a tag, or by *, or {_SPLIT[0].lower()}{_SPLIT[1:]}"
_WAYS_OUT = (
    "Ask for the best of them with top_tasks=K, or for all of them, line by line, with the header "
    "'Accept: application/x-ndjson'."
)


def check_count(what: str, count: int, limit: int, way_out: str = _SPLIT) -> None:
    """Raise RequestTooLarge if a request asks for more than a limit allows."""
    if count > limit:
        raise RequestTooLarge(
            f"The request asks for {count:,} {what}; at most {limit:,} are answered at once. "
            f"{way_out}",
            limit=limit,
            count=count,
        )


def _features_of(outcomes: Sequence[Outcome]) -> list[FloatArray]:
    return [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
