"""What ``/metrics`` tells of the service as it stands, rather than of what it did."""

import asyncio
import logging

from prompt_serve import __version__
from prompt_serve.errors import PromptServeError
from prompt_serve.service.core import Core
from prompt_serve.service.observability import metrics

_PATIENCE_S = 2.0

_log = logging.getLogger(__name__)


def tell_what_runs(core: Core) -> None:
    """Once a worker: which backbone runs on which execution provider."""
    manifest = core.bundle.manifest
    labels = (__version__, manifest.backbone.id, manifest.precision, core.engine.provider)
    metrics.info.labels(*labels).set(1)


async def note_registry(core: Core) -> None:
    """Before each scrape; where the database is away, the last numbers stay."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            revision = await core.reading(core.registry.revision)
            count = await core.reading(core.registry.count)
    except (PromptServeError, TimeoutError) as error:
        _log.warning("the registry could not be counted for /metrics: %s", error)
        return
    metrics.revision.set(revision)
    metrics.tasks.set(count)
