"""The BentoML service: start-up, probes, shutdown, and the app of ``api`` under ``/v1``.

BentoML gives the command line, packaging and lifecycle. Batching is our own (``batcher``): what
BentoML's ``batchable=True`` does with a batch of several callers is no good here.
"""

import logging
import sys
from http import HTTPStatus

import bentoml
from bentoml.exceptions import BentoMLException
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import ConfigInvalid, PromptServeError
from prompt_serve.schemas import DEFAULT_TOP_K
from prompt_serve.service import preflight
from prompt_serve.service.bind_address import anonymous_by, check_start
from prompt_serve.service.core import Core
from prompt_serve.service.http.app import create_app
from prompt_serve.service.inference.requests import TaskSelector, image_of_text
from prompt_serve.service.middleware.api_key_cache import ApiKeyCache
from prompt_serve.service.middleware.auth import AuthMiddleware
from prompt_serve.service.middleware.bento_timeout import WithoutBentoTimeouts
from prompt_serve.service.middleware.body_limit import BodyLimit
from prompt_serve.service.middleware.cors import cross_origin
from prompt_serve.service.observability import logs, metrics
from prompt_serve.service.observability.request_log import Observed
from prompt_serve.service.observability.service_metrics import (
    set_service_info,
    update_registry_metrics,
)
from prompt_serve.service.observability.tracing import Tracing, provider_from_environment
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.api_keys import Keys

_log = logging.getLogger(__name__)
_app = create_app()
_app.state.api_key_cache = None  # as the core: there is one when a worker has started


async def _v1(scope: Scope, receive: Receive, send: Send) -> None:
    """The app, as a plain function: BentoML looks into apps it knows and passes on paths they have
    no route for, so that /v1/nonsense would not be answered by a problem document."""
    await _app(scope, receive, send)


def _gates(app: ASGIApp) -> ASGIApp:
    """What a request passes before any route, BentoML's own included, sees it."""
    settings = Settings.from_environment()
    app = BodyLimit(app, settings.max_body_bytes)
    app = AuthMiddleware(app, lambda: _app.state.api_key_cache, anonymous_by(settings))
    # Outside of access control: browsers ask what they may ask without a key.
    app = cross_origin(app, settings.cors_origins)
    app = Observed(app, Tracing(provider_from_environment()))
    return WithoutBentoTimeouts(app)


async def _metrics(_: Request) -> Response:
    core: Core | None = _app.state.core
    if core is not None:
        await update_registry_metrics(core.registry_state)
    return Response(await run_in_threadpool(metrics.exposition), media_type=metrics.CONTENT_TYPE)


def _workers() -> int:
    """As set; settings that are not valid are told by ``prepare``, before a worker starts."""
    try:
        return Settings.from_environment().workers
    except ConfigInvalid:
        return 1


@bentoml.service(
    name="prompt_serve",
    workers=_workers(),
    # BentoML labels its series with the path as it came: every task name and every 404 of a
    # scanner would add twenty.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # ``observing`` writes a line a request
    http={"host": "127.0.0.1"},  # by default; another one needs keys (see ``access``)
)
@bentoml.asgi_app(Starlette(routes=[Route("/metrics", _metrics)]), path="/")
@bentoml.asgi_app(_v1, path="/v1")
class PromptServe:
    """Classifies images by many learned tasks over one frozen CLIP. The API is under /v1/docs."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]  # BentoML has no types
    @staticmethod
    def prepare() -> None:
        """Once, before the workers start."""
        try:
            settings = Settings.from_environment()
            preflight.check(settings)
            check_start(settings)
            provider_from_environment()
            metrics.prepare_folder()
        except PromptServeError as error:
            sys.exit(f"prompt-serve cannot start: {error}")

    def __init__(self) -> None:
        settings = Settings.from_environment()
        logs.set_up(settings.log_format, settings.log_level)
        self.core = Core(settings)
        set_service_info(self.core.bundle.manifest, self.core.engine.provider)
        _app.state.api_key_cache = ApiKeyCache(Keys(self.core.database))
        _app.state.core = self.core

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # BentoML has no types
    def close(self) -> None:
        _app.state.core = _app.state.api_key_cache = None
        self.core.close()
        metrics.forget_this_worker()

    async def __is_ready__(self) -> bool:
        try:
            await self.core.health.check()
        except PromptServeError as error:
            _log.warning("not ready: %s", error)
            return False
        return True

    async def __is_alive__(self) -> bool:
        return self.core.health.is_alive

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML has no types
    async def classify(
        self, images: list[str], tasks: list[str], top_k: int = DEFAULT_TOP_K
    ) -> dict[str, object]:
        """Classify images in base64: for BentoML's client and page; /v1/classify is leaner.

        Args:
            images: files in base64, with or without a ``data:`` prefix.
            tasks: names of tasks.
            top_k: classes a task.
        """
        try:
            items = [image_of_text(image) for image in images]
            answer = await self.core.classifier.classify(items, TaskSelector(tasks), top_k)
        except PromptServeError as error:
            raise BentoMLException(
                f"{error.code}: {error.message}", error_code=HTTPStatus(error.status)
            ) from error
        return answer.model_dump(exclude_none=True)


PromptServe.add_asgi_middleware(_gates)  # type: ignore[attr-defined]  # a Service
