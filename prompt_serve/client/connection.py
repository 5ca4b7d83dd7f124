"""HTTP connection to one service, with retries."""

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from prompt_serve.client.network_settings import (
    check_key_is_safe,
    find_proxy,
    parse_url,
    proxy_name,
    tls_context,
)
from prompt_serve.client.retries import (
    RETRIED_STATUSES,
    RetryPolicy,
    RetryState,
    retry_after_s,
)
from prompt_serve.client.wire import PROXY_EXTENSION, Call, through, unwrap_lines
from prompt_serve.errors import (
    ConfigInvalid,
    DeadlineExceeded,
    PromptServeError,
    ServiceUnreachable,
)

CONNECT_TIMEOUT_S = 5.0
# Shorter than the 5 s after which uvicorn closes idle connections: with equal times, some requests
# would be sent into a connection that is just being closed.
KEEP_ALIVE_S = 3.0
KEY_VARIABLE = "PROMPT_SERVE_API_KEY"
# Ends of addresses that people copy: the API's prefix, the page, the documents.
_BELOW_SERVICE = re.compile(r"/v1(/(ui|docs|openapi\.json)?)?/*$")
_RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A response, and whether an earlier attempt may have succeeded without a response."""

    response: httpx.Response
    repeated: bool


class Connection:
    """Pool of HTTP connections to ``base_url``.

    Addresses within the service are understood: of ``http://localhost:3000/v1/ui`` the base URL is
    ``http://localhost:3000``.
    Redirects are not followed, so the API key is sent to the given address only.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        url = _parse_url(base_url)
        self.base_url = str(url).rstrip("/")
        if timeout_s <= 0:
            raise ConfigInvalid(f"timeout_s is {timeout_s}; expected seconds above 0.")
        self._timeout_s = timeout_s
        sent_headers = httpx.Headers({**_with_key(api_key), **(headers or {})})
        proxy = find_proxy(url)
        check_key_is_safe(url, sent_headers, proxy)
        self._proxy_name = proxy_name(proxy) if proxy else None
        context = tls_context(url, proxy)
        if proxy and proxy.url.scheme == "https":
            proxy.ssl_context = context
        self._http = httpx.AsyncClient(
            trust_env=False,  # read by ``network_settings``
            proxy=proxy,
            verify=context,
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None),
            headers=sent_headers,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            follow_redirects=False,
        )

    async def send(self, call: Call, policy: RetryPolicy) -> Reply:
        """Send ``call`` and return the response, after retries the last one (429, 503).

        Raises:
            ServiceUnreachable: no connection could be made or kept.
            DeadlineExceeded: connected, but no response within ``timeout_s``.
        """
        retry_state = RetryState(policy)
        repeated = False
        while True:
            outcome = await self._attempt(call)
            if isinstance(outcome, httpx.Response):
                if outcome.status_code not in RETRIED_STATUSES:
                    return Reply(outcome, repeated)
                delay_s = retry_state.next_delay_s(retry_after_s(outcome.headers))
            else:
                repeated = repeated or not isinstance(outcome, httpx.ConnectError)
                delay_s = retry_state.next_delay_s()
            if delay_s is None:
                return Reply(self._response_or_raise(outcome, retry_state), repeated)
            _log.info("%s: %s; retrying in %.1f s", self.base_url, _reason(outcome), delay_s)
            await asyncio.sleep(delay_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _attempt(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            response = unwrap_lines(
                await self._http.request(call.method, self.base_url + call.path, **call.arguments)
            )
        except _RETRIED_ERRORS as error:
            return error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(
                f"Cannot send requests to {self._route}: {error}", url=self.base_url
            ) from error
        response.extensions[PROXY_EXTENSION] = self._proxy_name
        return response

    @property
    def _route(self) -> str:
        """URL of the service, and the proxy on the way to it."""
        return self.base_url + through(self._proxy_name)

    def _response_or_raise(
        self, outcome: httpx.Response | httpx.TransportError, retry_state: RetryState
    ) -> httpx.Response:
        if isinstance(outcome, httpx.Response):
            return outcome
        times = "once" if retry_state.failures == 1 else f"{retry_state.failures} times"
        tried = f"tried {times} in {retry_state.elapsed_s:.1f} s"
        error: PromptServeError
        if isinstance(outcome, httpx.ReadTimeout | httpx.WriteTimeout):
            error = DeadlineExceeded(
                f"{self._route} did not answer within {self._timeout_s:g} s ({tried}). "
                f"Raise timeout_s (--timeout) or send fewer images at a time.",
                url=self.base_url,
                timeout_s=self._timeout_s,
            )
        else:
            error = ServiceUnreachable(
                f"Cannot reach {self._route} ({_reason(outcome)}; {tried}). {self._hint(outcome)}",
                url=self.base_url,
                attempts=retry_state.failures,
            )
        raise error from outcome

    def _hint(self, error: httpx.TransportError) -> str:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                "If its certificate is signed by an authority of your own, name the authority's "
                "file in SSL_CERT_FILE."
            )
        if "WRONG_VERSION_NUMBER" in str(error):
            return "No TLS is spoken there: use an http:// URL (--url)."
        if "incomplete" in str(error):
            return (
                "The answer was cut off: send fewer images at a time, or raise the limits of the "
                "proxy in front of the service."
            )
        if self._proxy_name:
            return (
                f"Is the service running, and can the proxy reach it? To connect without the "
                f"proxy: NO_PROXY={httpx.URL(self.base_url).host}"
            )
        return (
            "Is the service running? Start it with `bentoml serve`, or give another address as "
            "base_url (--url)."
        )


def _parse_url(text: str) -> httpx.URL:
    """Parse the URL of a service, or of its API, its page or its documents."""
    try:
        url = parse_url(text.strip(), ("http", "https"))
        if url.query:
            raise ValueError("it has a query")
        path = url.raw_path.decode("ascii").partition("?")[0]
        return url.copy_with(
            raw_path=_BELOW_SERVICE.sub("", path).encode("ascii") or b"/", fragment=None
        )
    except ValueError as error:
        raise ConfigInvalid(
            f"{text!r} is not the URL of a service ({error}). Give the full URL, as in "
            f"'http://localhost:3000'."
        ) from error


def _with_key(api_key: str | None) -> dict[str, str]:
    """Return the header with the given key, or with the key of the environment."""
    key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):  # the message must not show it
        raise ConfigInvalid(
            f"The API key (api_key=, {KEY_VARIABLE}) contains characters that no key has."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _reason(outcome: httpx.Response | httpx.TransportError) -> str:
    if isinstance(outcome, httpx.Response):
        return f"answered {outcome.status_code}"
    return f"{type(outcome).__name__}: {outcome}".rstrip(": ")
