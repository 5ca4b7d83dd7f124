"""BentoML service: startup, probes, shutdown, and the app of ``http.app`` under ``/v1``.

BentoML provides the command line, packaging and lifecycle. Batching is our own
(``inference.batcher``): BentoML's ``batchable=True`` mishandles batches of several callers.
"""

import gc
import logging
import os
import sys
import threading

import bentoml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import ConfigInvalid, NotReady, PromptServeError
from prompt_serve.schemas import DEFAULT_TOP_K
from prompt_serve.service import preflight, startup
from prompt_serve.service.bind_address import anonymous_access, bind_host
from prompt_serve.service.byte_budget import ByteBudget
from prompt_serve.service.core import Core
from prompt_serve.service.http.app import create_app, direct_routes
from prompt_serve.service.http.direct import DirectRoutes
from prompt_serve.service.http.probes import Probes
from prompt_serve.service.middleware import shared_usage
from prompt_serve.service.middleware.api_key_cache import ApiKeyCache
from prompt_serve.service.middleware.auth import AuthMiddleware
from prompt_serve.service.middleware.bento_middleware import RemoveBentoMiddleware
from prompt_serve.service.middleware.body_limit import BodyLimitMiddleware
from prompt_serve.service.middleware.cors import add_cors
from prompt_serve.service.middleware.oidc import token_verifier
from prompt_serve.service.middleware.origin_guard import OriginGuard
from prompt_serve.service.middleware.paths import PathMiddleware
from prompt_serve.service.middleware.redirects import RedirectMiddleware
from prompt_serve.service.middleware.request_deadline import DeadlineMiddleware
from prompt_serve.service.observability import logs, metrics
from prompt_serve.service.observability.request_log import RequestLogMiddleware
from prompt_serve.service.observability.service_metrics import (
    set_service_info,
    update_registry_metrics,
)
from prompt_serve.service.observability.tracing import Tracing, provider_from_environment
from prompt_serve.service.server import heartbeat, http_protocol, runtime_folder, stopping
from prompt_serve.service.server.allocator import return_large_buffers
from prompt_serve.service.server.heartbeat import HeartbeatMiddleware
from prompt_serve.service.settings import Settings
from prompt_serve.service.startup_progress import show_progress
from prompt_serve.service.storage.api_keys import Keys
from prompt_serve.service.storage.database import Database

_log = logging.getLogger(__name__)
_EXIT_MARGIN_S = 5.0
_SWITCH_INTERVAL_S = 0.0005
http_protocol.install()
_app = create_app()
_app.state.api_key_cache = None  # set, like the core, when a worker has started


async def _v1(scope: Scope, receive: Receive, send: Send) -> None:
    """Call the app. A plain function, because BentoML inspects the routes of an app it recognizes
    and handles unmatched paths itself: /v1/nonsense would not get a problem document. Most requests
    do not come here: ``http.direct`` answers them before BentoML's router."""
    await _app(scope, receive, send)


def _with_middleware(app: ASGIApp) -> ASGIApp:
    """Wrap all routes, BentoML's own included."""
    settings = Settings.from_environment()
    app = DirectRoutes(app, _app, direct_routes())
    app = Probes(app, lambda: _app.state.core)
    app = PathMiddleware(app)
    app = BodyLimitMiddleware(app, settings.max_body_bytes, _budget, settings.min_body_bytes_per_s)
    app = AuthMiddleware(
        app,
        lambda: _app.state.api_key_cache,
        anonymous_access(settings),
        token_verifier(settings),
    )
    app = OriginGuard(app, settings.cors_origins)
    # Outside of authentication: browsers send no key with preflight requests.
    app = add_cors(app, settings.cors_origins)
    app = RedirectMiddleware(app)
    app = DeadlineMiddleware(
        app,
        request_timeout_s=settings.request_timeout_s,
        change_timeout_s=settings.change_timeout_s,
    )
    app = RequestLogMiddleware(app, Tracing(provider_from_environment()))
    app = HeartbeatMiddleware(app, _is_alive)
    return RemoveBentoMiddleware(app)


def _budget() -> ByteBudget | None:
    core: Core | None = _app.state.core
    return None if core is None else core.budget


def _is_alive() -> bool:
    core: Core | None = _app.state.core
    return core is None or core.health.is_alive


async def _metrics(_: Request) -> Response:
    core: Core | None = _app.state.core
    if core is not None:
        await update_registry_metrics(core.registry_state)
    return Response(await run_in_threadpool(metrics.exposition), media_type=metrics.CONTENT_TYPE)


def _workers() -> int:
    """Return the configured number; ``prepare`` reports invalid settings before a worker starts."""
    try:
        return Settings.from_environment().workers
    except ConfigInvalid:
        return 1


@bentoml.service(
    name="prompt_serve",
    workers=_workers(),
    # BentoML labels its series with the raw path: every task name and every 404 of a scanner would
    # add twenty series.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # ``request_log`` writes a line per request
    http={"host": "127.0.0.1"},  # default; other addresses need API keys (``bind_address``)
)
@bentoml.asgi_app(Starlette(routes=[Route("/metrics", _metrics)]), path="/")
@bentoml.asgi_app(_v1, path="/v1")
class PromptServe:
    """Image classification with many learned tasks on one frozen CLIP. API: /v1/docs."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]  # BentoML has no types
    @staticmethod
    def prepare() -> None:
        """Check settings, port, bundle, device and registry once, before the workers start."""
        try:
            settings = Settings.from_environment()
            startup.check_port()
            startup.report_port_taken()
            show_progress(settings, bind_host(), startup.bind_port())
            preflight.check(settings)
            provider_from_environment()
            folder = runtime_folder.create()
            metrics.prepare_folder(folder)
            shared_usage.prepare_file(folder, settings.workers)
            startup.check_registry(settings)
            heartbeat.watch_workers(folder, settings.worker_timeout_s)
            stopping.close_sockets_first()
            startup.print_addresses()
        except PromptServeError as error:
            sys.exit(f"prompt-serve cannot start: {error}")
        except OSError as error:
            sys.exit(
                f"prompt-serve cannot start: The folder for temporary files cannot be used: "
                f"{error}. TMPDIR chooses another one."
            )

    def __init__(self) -> None:
        stopping.end_with_parent()
        runtime_folder.hold()
        return_large_buffers()
        stopping.answer_what_waits()
        settings = Settings.from_environment()
        logs.configure_logging(settings.log_format, settings.log_level)
        self._settings = settings
        self._stopping = threading.Event()
        self.core: Core | None = None
        try:
            self._start(Database(settings.database))
        except NotReady as error:
            _log.warning("%s", error)
            # The database went away. A worker that ends now would be started again and again, and
            # meanwhile nobody would answer.
            threading.Thread(target=self._start_later, daemon=True).start()

    def _start(self, database: Database) -> None:
        self.core = Core(self._settings, database)
        set_service_info(self.core.bundle.manifest, self.core.engine.provider)
        _app.state.api_key_cache = ApiKeyCache(
            Keys(database), stale_limit_s=self._settings.stale_tasks_s
        )
        # Full collections, frequent while large answers are made, would search all that was loaded
        # so far, and hold every request for 0.1 s.
        gc.collect()
        gc.freeze()
        # The event loop needs the interpreter's lock for moments, several times per request; with
        # the default of 5 ms a thread that makes large answers delays each of them for as long.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _app.state.core = self.core

    def _start_later(self) -> None:
        """Start when the database is there; requests get 503 until then."""
        while not self._stopping.wait(startup.RETRY_S):
            try:
                self._start(Database(self._settings.database))
                return
            except NotReady:
                continue
            except Exception:
                _log.exception("this worker cannot start")
                os._exit(1)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # BentoML has no types
    def close(self) -> None:
        self._stopping.set()
        stopping.exit_within(2 * self._settings.shutdown_timeout_s + _EXIT_MARGIN_S)
        core, self.core = self.core, None
        if _app.state.api_key_cache is not None:
            _app.state.api_key_cache.close()
        _app.state.core = _app.state.api_key_cache = None
        if core is not None:
            core.close()
        metrics.remove_this_worker()

    async def __is_ready__(self) -> bool:
        try:
            await self._ready_core.health.check()
        except PromptServeError as error:
            _log.warning("not ready: %s", error)
            return False
        return True

    async def __is_alive__(self) -> bool:
        return _is_alive()

    @property
    def _ready_core(self) -> Core:
        if self.core is None:
            raise NotReady("The service waits for its registry.", retry_after_s=1.0)
        return self.core

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML has no types
    async def classify(
        self, images: list[str], tasks: list[str], top_k: int = DEFAULT_TOP_K
    ) -> dict[str, object]:
        """Classify images in base64, for BentoML's client and page.

        Args:
            images: image files in base64, with or without a ``data:`` prefix.
            tasks: names of tasks.
            top_k: number of classes per task.
        """
        raise NotImplementedError  # ``middleware.redirects`` passes requests on to /v1/classify


PromptServe.add_asgi_middleware(_with_middleware)  # type: ignore[attr-defined]  # a Service
