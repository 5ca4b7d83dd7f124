"""Prometheus metrics of all workers.

No label takes a value that a caller chooses: routes are templates, results a few words and keys
those that the operator named, so neither ten thousand tasks nor a scanner's thousand paths add a
series.

Each worker writes to its own files in one folder, and the worker that answers ``/metrics`` adds
them up. BentoML shares one such folder between all services of its home and empties it whenever one
of them starts, so each of our services has a folder of its own.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Literal

_PROMETHEUS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_OUR_FOLDER = "_PROMPT_SERVE_METRICS_FOLDER"  # set by the parent for its workers; not a setting

# Set before the first metric below, which is when prometheus_client opens its files.
if _OUR_FOLDER in os.environ:
    os.environ[_PROMETHEUS_FOLDER] = os.environ[_OUR_FOLDER]

from prometheus_client import (  # noqa: E402 (see above)
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
    values,
)

from prompt_serve.errors import PromptServeError  # noqa: E402 (see above)

CONTENT_TYPE = CONTENT_TYPE_LATEST
NAMESPACE = "prompt_serve"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_UPLOAD_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

if _PROMETHEUS_FOLDER in os.environ:
    # As prometheus_client would, which asks the system for the process with every sample, in case
    # it was forked; workers are not.
    values.ValueClass = values.MultiProcessValue(partial(int, os.getpid()))  # type: ignore[no-untyped-call]

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series of histograms

requests = Counter(
    "requests",
    "Answered requests, by route template.",
    ["method", "route", "status"],
    namespace=NAMESPACE,
)
request_seconds = Histogram(
    "request_duration_seconds",
    "Time from the first byte of a request to the last of its answer, by kind.",
    ["kind"],
    namespace=NAMESPACE,
    buckets=_REQUEST_SECONDS,
)
requests_in_progress = Gauge(
    "requests_in_progress",
    "Requests being answered.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
images = Counter("images", "Images, by result.", ["result"], namespace=NAMESPACE)
image_passes = Counter(
    "image_passes",
    "Passes of images through the encoder: plain, or with the vectors of an image prompt.",
    ["kind"],
    namespace=NAMESPACE,
)
batch_images = Histogram("batch_images", "Passes per batch.", namespace=NAMESPACE, buckets=_IMAGES)
queue_images = Gauge(
    "queue_images",
    "Images in the queue: admitted and not yet answered.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
queue_bytes = Gauge(
    "queue_bytes",
    "Bytes of the images in the queue.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
bytes_in_flight = Gauge(
    "bytes_in_flight",
    "Memory reserved for bodies, images being decoded, class features and answers.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
queue_wait_seconds = Histogram(
    "queue_wait_seconds",
    "Time per image from decoded to the start of its batch.",
    namespace=NAMESPACE,
    buckets=_SECONDS,
)
decode_seconds = Histogram(
    "decode_seconds", "Decoding and resizing per image.", namespace=NAMESPACE, buckets=_SECONDS
)
inference_seconds = Histogram(
    "inference_seconds", "Image encoder per batch.", namespace=NAMESPACE, buckets=_SECONDS
)
score_seconds = Histogram(
    "score_seconds", "Logits and best classes per request.", namespace=NAMESPACE, buckets=_SECONDS
)
text_encoding_seconds = Histogram(
    "text_encoding_seconds",
    "Text encoder per task version.",
    namespace=NAMESPACE,
    buckets=_UPLOAD_SECONDS,
)
cache_lookups = Counter(
    "class_feature_lookups",
    "Lookups of a task's class features in memory.",
    ["result"],
    namespace=NAMESPACE,
)
cache_evictions = Counter(
    "class_feature_evictions", "Class features evicted from memory.", namespace=NAMESPACE
)
cache_bytes = Gauge(
    "class_feature_bytes",
    "Bytes of class features in memory.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
stale_seconds = Gauge(
    "registry_stale_seconds",
    "Age of the tasks that are served while the database cannot be read; 0: it can.",
    namespace=NAMESPACE,
    multiprocess_mode="livemax",
)
stale_reads = Counter(
    "registry_stale_reads",
    "Lookups of tasks that were answered from memory because the database could not be read.",
    namespace=NAMESPACE,
)
uploads = Counter("uploads", "Uploaded prompt files, by result.", ["result"], namespace=NAMESPACE)
info = Gauge(
    "info",
    "Always 1; the labels describe the running service.",
    ["version", "backbone", "precision", "provider"],
    namespace=NAMESPACE,
    multiprocess_mode="livemax",
)
tasks = Gauge("tasks", "Registered tasks.", namespace=NAMESPACE, multiprocess_mode="livemostrecent")
revision = Gauge(
    "registry_revision",
    "Revision of the registry, raised by every change.",
    namespace=NAMESPACE,
    multiprocess_mode="livemostrecent",
)

key_requests = Counter(
    "key_requests",
    "Answered requests, by name of the key; 'other' beyond the first 200 names of a worker.",
    ["key"],
    namespace=NAMESPACE,
)
key_images = Counter(
    "key_images", "Images of requests, by name of the key.", ["key"], namespace=NAMESPACE
)
_MAX_KEYS = 200
_key_names: set[str] = set()

cache_hits, cache_misses = cache_lookups.labels("hit"), cache_lookups.labels("miss")
plain_passes, prompted_passes = image_passes.labels("plain"), image_passes.labels("prompted")
# Create the series at zero, so that the first event shows in a rate.
for _result in ("answered", "abandoned", "refused", "failed"):
    images.labels(_result)
for _result in ("stored", "refused", "failed"):
    uploads.labels(_result)


@cache
def images_of(result: str) -> Counter:
    """Return the counter of images with this result."""
    return images.labels(result)


@cache
def requests_of(method: str, route: str, status: int) -> Counter:
    """Return the counter of requests with these labels, all of which are a few words."""
    return requests.labels(method, route, str(status))


@cache
def request_seconds_of(kind: str) -> Histogram:
    """Return the histogram of requests of a kind."""
    return request_seconds.labels(kind)


def result_of(error: BaseException) -> Literal["refused", "failed"]:
    """Classify an error: ``refused`` is the caller's fault, ``failed`` the service's."""
    status = error.status if isinstance(error, PromptServeError) else 500
    return "failed" if status >= 500 else "refused"


def count_request_of(key: str, images: int) -> None:
    """Count a request and its images for a key."""
    if key not in _key_names:
        if len(_key_names) >= _MAX_KEYS:
            key = "other"
        _key_names.add(key)
    key_requests.labels(key).inc()
    key_images.labels(key).inc(images)


@contextmanager
def counted_upload() -> Iterator[None]:
    """Count the upload inside the block by its result. Works as a decorator too."""
    try:
        yield
    except BaseException as error:
        count_upload(result_of(error))
        raise
    count_upload("stored")


def count_upload(result: str, files: int = 1) -> None:
    """Count uploaded prompt files by result."""
    uploads.labels(result).inc(files)


def prepare_folder(parent: Path) -> None:
    """Create the folder of the workers' files below ``parent``, before they start."""
    folder = parent / "metrics"
    folder.mkdir()
    os.environ[_OUR_FOLDER] = str(folder)


def remove_dead_workers() -> None:
    """Remove the gauges of workers that were killed: their queues no longer exist."""
    for pid in _dead(_pids()):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def remove_this_worker() -> None:
    """Remove the gauges of this worker; called when it stops."""
    if _PROMETHEUS_FOLDER in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def exposition() -> bytes:
    """Return all metrics of all workers in Prometheus' text format."""
    if _PROMETHEUS_FOLDER not in os.environ:
        return generate_latest(REGISTRY)
    remove_dead_workers()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _pids() -> set[int]:
    folder = os.environ.get(_PROMETHEUS_FOLDER)
    if folder is None:
        return set()
    names = (path.stem.rpartition("_")[2] for path in Path(folder).glob("gauge_live*.db"))
    return {int(name) for name in names if name.isdigit()}


def _dead(pids: Iterable[int]) -> list[int]:
    dead = []
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            dead.append(pid)
        except PermissionError:  # alive, but owned by another user
            continue
    return dead
