"""Work on a Ray cluster: score with Ray Data, also in pipelines of one's own, and train many runs.

    images      shards -> [actor pool: read, decode, encode] -> features -> [tasks: score, write]
    embeddings  shards -> [tasks: read, score, write]

Ray schedules, moves data and retries; nothing here is distributed. A shard is one row all the way,
and its part is written whole under its own name: what runs twice after a failure writes the same
part again. Class features are in Ray's object store, once per node. Training runs are tasks
(``map_on_ray``).
"""

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from prompt_serve.bundle import open_bundle
from prompt_serve.errors import ConfigInvalid, DependencyMissing, PromptServeError
from prompt_serve.offline.columns import ScoreColumns, score_schema
from prompt_serve.offline.encoding import encoded_images
from prompt_serve.offline.model import Model, PathLike, Prompts, load_model
from prompt_serve.offline.score_job import Advance, Counts, ScoreJob, ShardScorer, features_by_task
from prompt_serve.offline.score_run import NumberedShard
from prompt_serve.offline.task_scores import TaskScorer
from prompt_serve.sources.shard import Item, holds_embeddings
from prompt_serve.tasks.predictions import NamedTasks
from prompt_serve.training.many.processes import Failed, call_with_threads

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)

CORES_PER_WORKER = 4
_CONNECT_TIMEOUT_S = 10.0
_TASK_CORES = 1e-3  # tasks that score are short, and must not wait for a core of the encoders


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Actor pool of encoders."""

    count: int | None = None  # None: as many as fit into the cluster
    cores: int | None = None  # per encoder on a CPU; None: 4, or all if there are fewer


def score_dataset(
    dataset: "ray.data.Dataset",
    prompts: Prompts,
    *,
    bundle: PathLike | None = None,
    device: str = "cpu",
    top_k: int = 1,
    image: str = "image",
    source: str | None = None,
    batch_size: int = 64,
    workers: Workers | None = None,
) -> "ray.data.Dataset":
    """Score the images of a Ray dataset.

    Args:
        dataset: rows with an image each.
        prompts: prompt file, several, or a mapping of names to files.
        bundle: as in ``prompt_serve.load``; a folder must be on every node.
        device: cpu or cuda; on cuda each encoder has a GPU.
        top_k: number of classes per prompt.
        image: column of bytes of image files, of their paths or URLs, or of arrays (H, W, 3).
        source: column that names the images; None: ``path`` if there is one.
        batch_size: images per call of an encoder.
        workers: actor pool of encoders.

    Returns:
        Dataset with one row per image and prompt and the columns of ``prompt-serve score``.
    """
    model = load_model(prompts, bundle=bundle, device=device, threads=1)
    shared = _Shared.of(model, device, _cores(workers))
    scored: ray.data.Dataset = dataset.map_batches(
        _ScoreImages,
        fn_constructor_args=(shared, top_k, image, source),
        batch_size=batch_size,
        batch_format="numpy",
        **_pool(device, workers),
    )
    return scored


def run_on_ray(
    scorer: ShardScorer,
    shards: Sequence[NumberedShard],
    advance: Advance,
    *,
    device: str = "cpu",
    workers: Workers | None = None,
) -> Counts:
    """Score the shards of a job, as ``run_here`` does; ``start`` has connected to the cluster."""
    import ray.data

    if not shards:
        return Counts()
    ray.data.DataContext.get_current().enable_progress_bars = False  # the caller has one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    job = scorer.job
    shared = _Shared.of(scorer.model, device, _cores(workers))
    dataset = ray.data.from_items(
        [{"index": index, "shard": pickle.dumps(shard)} for index, shard in shards],
        override_num_blocks=len(shards),
    )
    if holds_embeddings(shards[0][1]):
        counted = dataset.map(_score_embeddings, fn_args=(shared, job))
    else:
        encoded = dataset.map(
            _EncodeShard, fn_constructor_args=(shared, job), **_pool(device, workers)
        )
        counted = encoded.map(_score_features, fn_args=(shared, job), num_cpus=_TASK_CORES)
    total = Counts()
    with _errors_of_tasks():
        for row in counted.iter_rows():
            counts = Counts(row["images"], row["rows"], row["errors"], row["unknown"])
            advance(counts.images)
            total += counts
    return total


def map_on_ray(
    function: Callable[[Argument], Result],
    items: Sequence[Argument],
    *,
    cores: int | None = None,
    gpus: int = 0,
) -> Iterator[tuple[int, Result | Failed]]:
    """Yield the index and the outcome of each call, as ``map_in_processes`` does.

    Ray starts again what a dead worker or node was at, three times at most. ``cluster`` has
    connected.

    Args:
        function: of a module that is installed on all nodes.
        items: can be pickled.
        cores: of each call, for torch and numpy; None: 4, or all if there are fewer.
        gpus: of each call.
    """
    import ray
    from ray.exceptions import RayError

    cores = _cores(Workers(cores=cores))
    if not any(_has(node, CPU=cores, GPU=gpus) for node in ray.nodes()):
        _log.warning(
            "Warning: no node of the cluster has %d cores and %d GPUs for a run; it waits for one. "
            "Ask for fewer with --threads.",
            cores,
            gpus,
        )
    task = ray.remote(num_cpus=cores, num_gpus=gpus, max_calls=1)(call_with_threads)
    calls = {task.remote(function, item, cores): index for index, item in enumerate(items)}
    while calls:
        finished, _ = ray.wait(list(calls))
        for call in finished:
            index = calls.pop(call)
            try:
                yield index, ray.get(call)
            except RayError as error:
                yield index, Failed(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _has(node: dict[str, Any], **needed: int) -> bool:
    there = node["Resources"]
    return bool(node["Alive"]) and all(there.get(name, 0) >= n for name, n in needed.items())


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster for the block, or start one on this machine where None.

    Raises:
        DependencyMissing: Ray is not installed.
        ConfigInvalid: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports to nobody
    try:
        import ray
        import ray.data  # needs more than ray alone
    except ImportError as error:
        raise DependencyMissing(
            f"Ray Data needs {error.name}: pip install 'prompt-serve[ray]'",
            package=str(error.name),
            extra="ray",
        ) from error
    try:
        _check_reachable(address)
        ray.init(
            address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level="warning",
        )
    except OSError as error:  # Ray's own is a ConnectionError
        raise ConfigInvalid(
            f"There is no Ray cluster at {address}: {error}. Start one with: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise an OSError if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    parts = urlsplit(address if address and "://" in address else f"//{address or ''}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), _CONNECT_TIMEOUT_S).close()


@dataclass(frozen=True)
class _Shared:
    """What every worker needs: the bundle's path, and the tasks in the object store."""

    bundle: str
    tasks: Any  # reference to ``NamedTasks``
    device: str
    threads: int

    @classmethod
    def of(cls, model: Model, device: str, threads: int) -> "_Shared":
        import ray

        return cls(str(model.bundle.path.absolute()), ray.put(model.tasks), device, threads)

    def model(self) -> Model:
        """Return the model in this process; its arrays are those of the object store."""
        import ray

        tasks: NamedTasks = ray.get(self.tasks)
        bundle = open_bundle(Path(self.bundle), verify=False)
        return Model(tasks, bundle, device=self.device, threads=self.threads)


class _EncodeShard:
    """Actor: encodes the images of shards."""

    def __init__(self, shared: _Shared, job: ScoreJob) -> None:
        self._scorer = ShardScorer(job, shared.model())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        batches = self._scorer.features(row["index"], pickle.loads(row["shard"]))  # noqa: S301
        return {**row, "features": pickle.dumps(list(batches))}


def _score_features(row: dict[str, Any], shared: _Shared, job: ScoreJob) -> dict[str, int]:
    shard = pickle.loads(row["shard"])  # noqa: S301  # our own
    batches = pickle.loads(row["features"])  # noqa: S301  # our own
    counts = ShardScorer(job, shared.model()).write(row["index"], shard, batches)
    return _row(counts)


def _score_embeddings(row: dict[str, Any], shared: _Shared, job: ScoreJob) -> dict[str, int]:
    shard = pickle.loads(row["shard"])  # noqa: S301  # our own
    return _row(ShardScorer(job, shared.model()).score(row["index"], shard, lambda _: None))


class _ScoreImages:
    """Actor: encodes and scores batches of images of any dataset."""

    def __init__(self, shared: _Shared, top_k: int, image: str, source: str | None) -> None:
        self._model = shared.model()
        self._scorer = TaskScorer(
            self._model.tasks,
            logit_scale=self._model.bundle.manifest.logit_scale,
            top_k=top_k,
        )
        self._columns = ScoreColumns(self._scorer)
        self._image, self._source = image, source

    def __call__(self, batch: dict[str, "np.ndarray[Any, Any]"]) -> "pa.Table":
        import pyarrow as pa

        if self._image not in batch:
            raise ConfigInvalid(
                f"The dataset has no column {self._image!r}; it has {', '.join(batch)}."
            )
        names = batch.get(self._source or "path")
        images = batch[self._image]
        items = (
            Item("" if names is None else str(names[index]), _content(images[index]))
            for index in range(len(images))
        )
        tables = [
            self._columns.table(
                found.sources,
                self._scorer(features_by_task(self._model, found.features)),
                found.errors,
            )
            for found in encoded_images(items, self._model)
        ]
        return pa.concat_tables(tables).cast(score_schema()).unify_dictionaries()


def _content(value: Any) -> Any:
    return value.get("bytes") if isinstance(value, dict) else value


def _row(counts: Counts) -> dict[str, int]:
    return {
        "images": counts.images,
        "rows": counts.rows,
        "errors": counts.errors,
        "unknown": counts.unknown,
    }


def _cores(workers: Workers | None) -> int:
    """Return the cores of an encoder on a CPU."""
    import ray

    asked = None if workers is None else workers.cores
    return asked or max(1, min(CORES_PER_WORKER, int(ray.cluster_resources().get("CPU", 1))))


def _pool(device: str, workers: Workers | None) -> dict[str, Any]:
    """Return the resources of an actor pool of encoders."""
    import ray
    import ray.data

    there = ray.cluster_resources()
    own: dict[str, Any] = (
        {"num_cpus": _cores(workers)} if device == "cpu" else {"num_gpus": 1, "num_cpus": 1}
    )
    fit = there.get("CPU", 1) // own["num_cpus"] if device == "cpu" else there.get("GPU", 0)
    count = (None if workers is None else workers.count) or max(1, int(fit))
    return {**own, "compute": ray.data.ActorPoolStrategy(size=count)}


@contextlib.contextmanager
def _errors_of_tasks() -> Iterator[None]:
    """Raise an error of ours as itself, not as that of the task it occurred in."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) if isinstance(cause, RayTaskError) else None
            if isinstance(inner, PromptServeError):
                raise inner from error
            if isinstance(cause, PromptServeError):
                raise cause from error
            cause = inner or cause.__cause__
        raise
