"""One service over HTTP: sends a call, and sends it again where that can help."""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from prompt_serve.client.retries import (
    RETRIED_STATUSES,
    RetryPolicy,
    RetryState,
    retry_after_s,
)
from prompt_serve.client.wire import Call
from prompt_serve.errors import (
    ConfigInvalid,
    DeadlineExceeded,
    PromptServeError,
    ServiceUnreachable,
)

CONNECT_TIMEOUT_S = 5.0
# Services close connections that were idle for 5 s (uvicorn's default). Whoever keeps them as long
# now and then sends into one that is just being closed.
KEEP_ALIVE_S = 3.0
KEY_VARIABLE = "PROMPT_SERVE_API_KEY"
_RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A response, and whether an earlier attempt may have been carried out unseen."""

    response: httpx.Response
    repeated: bool


class Connection:
    """A pool of connections to ``base_url``.

    Redirects are not followed: the key goes to the address that was given, and nowhere else.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigInvalid(
                f"{base_url!r} is not the URL of a service. Give it whole, as in "
                f"'http://localhost:3000'."
            )
        if timeout_s <= 0:
            raise ConfigInvalid(f"timeout_s is {timeout_s}; it must be above 0.")
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None),
            headers={**_with_key(api_key), **(headers or {})},
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            follow_redirects=False,
        )

    async def send(self, call: Call, policy: RetryPolicy) -> Reply:
        """The response to ``call``; of a refusal to serve (429, 503), the last one.

        Raises:
            ServiceUnreachable: no connection, or none that holds.
            DeadlineExceeded: connected, but no answer within ``timeout_s``.
        """
        patience = RetryState(policy)
        repeated = False
        while True:
            outcome = await self._attempt(call)
            if isinstance(outcome, httpx.Response):
                if outcome.status_code not in RETRIED_STATUSES:
                    return Reply(outcome, repeated)
                delay_s = patience.next_delay_s(retry_after_s(outcome.headers))
            else:
                repeated = repeated or not isinstance(outcome, httpx.ConnectError)
                delay_s = patience.next_delay_s()
            if delay_s is None:
                return Reply(self._response_or_raise(outcome, patience), repeated)
            _log.info("%s: %s; trying again in %.1f s", self.base_url, _why(outcome), delay_s)
            await asyncio.sleep(delay_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def _attempt(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(
                call.method, self.base_url + call.path, **call.arguments
            )
        except _RETRIED_ERRORS as error:
            return error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(
                f"{self.base_url} cannot be asked: {error}", url=self.base_url
            ) from error

    def _response_or_raise(
        self, outcome: httpx.Response | httpx.TransportError, patience: RetryState
    ) -> httpx.Response:
        if isinstance(outcome, httpx.Response):
            return outcome
        tried = f"tried {patience.failures} times in {patience.elapsed_s:.1f} s"
        error: PromptServeError
        if isinstance(outcome, httpx.ReadTimeout | httpx.WriteTimeout):
            error = DeadlineExceeded(
                f"{self.base_url} did not answer within {self._timeout_s:g} s ({tried}). Give it "
                f"more time (timeout_s), or fewer images at a time.",
                url=self.base_url,
                timeout_s=self._timeout_s,
            )
        else:
            error = ServiceUnreachable(
                f"Nothing answers at {self.base_url} ({_why(outcome)}; {tried}). Is the service "
                f"running? `bentoml serve` starts it; another address is given as base_url "
                f"(--url).",
                url=self.base_url,
                attempts=patience.failures,
            )
        raise error from outcome


def _with_key(api_key: str | None) -> dict[str, str]:
    """The header that carries the key that was given, or else that of the environment."""
    key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):  # the message must not show it
        raise ConfigInvalid(f"The API key (api_key=, {KEY_VARIABLE}) has characters no key has.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _why(outcome: httpx.Response | httpx.TransportError) -> str:
    if isinstance(outcome, httpx.Response):
        return f"answered {outcome.status_code}"
    return f"{type(outcome).__name__}: {outcome}".rstrip(": ")
