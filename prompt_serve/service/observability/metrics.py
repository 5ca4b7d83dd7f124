"""Prometheus metrics. No label takes a value that a caller chooses: routes are templates, results
a few words. So ten thousand tasks and a scanner's thousand paths add no series.

Workers write to files of their own in one folder, and whichever is asked for ``/metrics`` adds them
up. BentoML names such a folder, one for all services of its home, and empties it whenever one of
them starts; ours therefore have one each.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

_PROMETHEUS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_OUR_FOLDER = "_PROMPT_SERVE_METRICS_FOLDER"  # from the parent to its workers; no setting

# Before prometheus_client opens its files, that is before the first metric below.
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
)

from prompt_serve.errors import PromptServeError  # noqa: E402 (see above)

CONTENT_TYPE = CONTENT_TYPE_LATEST
NAMESPACE = "prompt_serve"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_UPLOAD_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series of histograms

requests = Counter(
    "requests",
    "Requests answered, by the template of their route.",
    ["method", "route", "status"],
    namespace=NAMESPACE,
)
request_seconds = Histogram(
    "request_duration_seconds",
    "From the first byte to the last, by what the request does.",
    ["kind"],
    namespace=NAMESPACE,
    buckets=_REQUEST_SECONDS,
)
requests_in_progress = Gauge(
    "requests_in_progress",
    "Requests that are being answered.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
images = Counter("images", "Images, by what came of them.", ["result"], namespace=NAMESPACE)
batch_images = Histogram(
    "batch_images", "Images encoded together.", namespace=NAMESPACE, buckets=_IMAGES
)
queue_images = Gauge(
    "queue_images",
    "Images admitted and not yet answered.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
queue_bytes = Gauge(
    "queue_bytes",
    "Bytes of the images admitted and not yet answered.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
queue_wait_seconds = Histogram(
    "queue_wait_seconds",
    "From decoded to the start of the batch, an image.",
    namespace=NAMESPACE,
    buckets=_SECONDS,
)
decode_seconds = Histogram(
    "decode_seconds", "Decoding and resizing, an image.", namespace=NAMESPACE, buckets=_SECONDS
)
inference_seconds = Histogram(
    "inference_seconds", "The image encoder, a batch.", namespace=NAMESPACE, buckets=_SECONDS
)
score_seconds = Histogram(
    "score_seconds", "Logits and best classes, a request.", namespace=NAMESPACE, buckets=_SECONDS
)
text_encoding_seconds = Histogram(
    "text_encoding_seconds",
    "Class features of a task through the text encoder.",
    namespace=NAMESPACE,
    buckets=_UPLOAD_SECONDS,
)
cache_lookups = Counter(
    "class_feature_lookups",
    "Class features asked of the memory, a task.",
    ["result"],
    namespace=NAMESPACE,
)
cache_evictions = Counter(
    "class_feature_evictions", "Class features put out of the memory.", namespace=NAMESPACE
)
cache_bytes = Gauge(
    "class_feature_bytes",
    "Class features in memory.",
    namespace=NAMESPACE,
    multiprocess_mode="livesum",
)
uploads = Counter("uploads", "Prompt files received.", ["result"], namespace=NAMESPACE)
info = Gauge(
    "info",
    "1; the labels say what runs.",
    ["version", "backbone", "precision", "provider"],
    namespace=NAMESPACE,
    multiprocess_mode="livemax",
)
tasks = Gauge("tasks", "Tasks registered.", namespace=NAMESPACE, multiprocess_mode="livemostrecent")
revision = Gauge(
    "registry_revision",
    "Changes of the registry so far.",
    namespace=NAMESPACE,
    multiprocess_mode="livemostrecent",
)

cache_hits, cache_misses = cache_lookups.labels("hit"), cache_lookups.labels("miss")
images_answered, images_abandoned = images.labels("answered"), images.labels("abandoned")
# From zero on, so that the first one shows in a rate.
for _result in ("refused", "failed"):
    images.labels(_result)
    uploads.labels(_result)
uploads.labels("stored")


def result_of(error: BaseException) -> Literal["refused", "failed"]:
    """Whose fault an error is: ``refused`` is the caller's, ``failed`` the service's."""
    status = error.status if isinstance(error, PromptServeError) else 500
    return "failed" if status >= 500 else "refused"


@contextmanager
def counted_upload() -> Iterator[None]:
    """Count what is uploaded inside, by what comes of it. A decorator as well."""
    try:
        yield
    except BaseException as error:
        count_upload(result_of(error))
        raise
    count_upload("stored")


def count_upload(result: str, files: int = 1) -> None:
    """Count prompt files that were uploaded, by what came of them."""
    uploads.labels(result).inc(files)


def prepare_folder() -> None:
    """In the parent, before its workers start: a folder for their files, gone when it ends."""
    folder = tempfile.mkdtemp(prefix="prompt-serve-metrics-")
    os.environ[_OUR_FOLDER] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def forget_dead_workers() -> None:
    """Drop the gauges of workers that died without saying so: their queues are no more."""
    for pid in _dead(_pids()):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def forget_this_worker() -> None:
    """At the end of a worker, so that its gauges count no more."""
    if _PROMETHEUS_FOLDER in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def exposition() -> bytes:
    """All metrics of all workers, in Prometheus' text format."""
    if _PROMETHEUS_FOLDER not in os.environ:
        return generate_latest(REGISTRY)
    forget_dead_workers()
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
        except PermissionError:  # alive, and somebody else's
            continue
    return dead
