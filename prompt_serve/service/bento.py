"""The BentoML service: start-up, probes, shutdown, and the app of ``api`` under ``/v1``.

BentoML gives the command line, packaging and lifecycle. Batching is our own (``batcher``): what
BentoML's ``batchable=True`` does with a batch of several callers is no good here.
"""

import base64
import binascii
import logging
import sys
from http import HTTPStatus

import bentoml
from bentoml.exceptions import BentoMLException
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import PromptServeError, RequestInvalid
from prompt_serve.schemas import DEFAULT_TOP_K
from prompt_serve.service import preflight
from prompt_serve.service.api import create_app
from prompt_serve.service.body_limit import BodyLimit
from prompt_serve.service.core import Core, ImageFile
from prompt_serve.service.settings import Settings

# Ours answer long before; an upload of 100,000 classes may take this long to encode.
_LAST_RESORT_TIMEOUT_S = 4 * 3600

_log = logging.getLogger(__name__)
_app = create_app()


async def _v1(scope: Scope, receive: Receive, send: Send) -> None:
    """The app, as a plain function: BentoML looks into apps it knows and passes on paths they have
    no route for, so that /v1/nonsense would not be answered by a problem document."""
    await _app(scope, receive, send)


class SettingsBodyLimit(BodyLimit):
    """The body limit of the settings, for every route of the service."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, Settings.from_environment().max_body_bytes)


@bentoml.service(
    name="prompt_serve",
    workers=1,  # one process a device: each worker loads the model anew
    traffic={"timeout": _LAST_RESORT_TIMEOUT_S},
    # BentoML labels its series with the path as it came: every task name and every 404 of a
    # scanner would add twenty.
    metrics={"enabled": False},
)
@bentoml.asgi_app(_v1, path="/v1")
class PromptServe:
    """Classifies images by many learned tasks over one frozen CLIP. The API is under /v1/docs."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]  # BentoML has no types
    @staticmethod
    def prepare() -> None:
        """Once, before the workers start."""
        try:
            preflight.check(Settings.from_environment())
        except PromptServeError as error:
            sys.exit(f"prompt-serve cannot start: {error}")

    def __init__(self) -> None:
        # BentoML's handler is on the root logger, whose level hides start-up and shutdown.
        logging.getLogger("prompt_serve").setLevel(logging.INFO)
        self.core = Core(Settings.from_environment())
        _app.state.core = self.core

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # BentoML has no types
    def close(self) -> None:
        _app.state.core = None
        self.core.close()

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
            files = [ImageFile(_from_base64(image)) for image in images]
            answer = await self.core.classify(files, tasks, top_k)
        except PromptServeError as error:
            raise BentoMLException(
                f"{error.code}: {error.message}", error_code=HTTPStatus(error.status)
            ) from error
        return answer.model_dump(exclude_none=True)


PromptServe.add_asgi_middleware(SettingsBodyLimit)  # type: ignore[attr-defined]  # a Service


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestInvalid(f"An image is not base64: {error}.") from error
