"""Metrics of the current state of the service: what runs, and the size of the registry."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prompt_serve import __version__
from prompt_serve.bundle import Manifest
from prompt_serve.errors import PromptServeError
from prompt_serve.service.observability import metrics

_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


def set_service_info(manifest: Manifest, provider: str) -> None:
    """Set the metric ``info``: version, backbone, precision and execution provider."""
    labels = (__version__, manifest.backbone.id, manifest.precision, provider)
    metrics.info.labels(*labels).set(1)


async def update_registry_metrics(read: Callable[[], Awaitable[tuple[int, int]]]) -> None:
    """Set the metrics of the registry before a scrape.

    Args:
        read: returns the revision and the number of tasks. If it fails or takes too long, the
            metrics keep their last values.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            revision, count = await read()
    except (PromptServeError, TimeoutError) as error:
        _log.warning("the registry could not be counted for /metrics: %s", error)
        return
    metrics.revision.set(revision)
    metrics.tasks.set(count)
