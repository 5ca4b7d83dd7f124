"""Fetch images from URLs, safe from server-side request forgery (SSRF).

The service resolves a host once, checks all its addresses, and connects to a checked one. A name
that would resolve differently the second time (DNS rebinding) is never resolved a second time.
Redirects are checked like the first URL. Bodies are counted while they stream; the decoder decides
whether they are images, and their Content-Type is ignored.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import httpcore
import httpx

from prompt_serve.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    ImageUnreachable,
    PromptServeError,
    RequestTooLarge,
    UrlRefused,
)
from prompt_serve.service.inference.public_addresses import is_public
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.fair_pool import FairPool
from prompt_serve.service.settings import Settings

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_CONNECTIONS = 32
_RESOLVING = 16  # names at the same time
_FETCHES_PER_REQUEST = 8  # at the same time
_FETCHES_PER_CALLER = 24  # at the same time; the other connections are for other callers
_SHOWN_CHARACTERS = 200
_HEADERS = [
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),  # a compressed body could grow without bound
    (b"Connection", b"close"),
    (b"User-Agent", b"prompt-serve"),
]

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, kw_only=True)
class UrlPolicy:
    """Rules for fetching. Hosts are in lower case; ``*.b.org`` matches all subdomains of b.org."""

    hosts: frozenset[str] = frozenset()  # allowed hosts; empty: any
    private_hosts: frozenset[str] = frozenset()  # hosts that may have private addresses
    timeout_s: float = 10.0  # per image, including DNS and redirects
    max_bytes: int = 16 * 2**20  # per image


def parse_hosts(text: str) -> frozenset[str]:
    """Parse the comma-separated hosts of a setting."""
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


class SystemResolver:
    """Resolves hosts to all their addresses with the system's resolver.

    The system's calls block and cannot be ended, for minutes if a name server is slow. They have
    threads of their own, of which one caller holds a quarter at most.
    """

    def __init__(self, lookup: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._pool = FairPool(_RESOLVING, "resolve", max_per_caller=_RESOLVING // 4)

    async def __call__(self, host: str, port: int) -> list[str]:
        turn = current_request().turn
        call = partial(self._lookup, host, port, type=socket.SOCK_STREAM)
        infos = await asyncio.wrap_future(self._pool.submit(turn, call))
        return list(dict.fromkeys(str(address[0]) for *_, address in infos))


class UrlFetcher:
    """HTTP client for images that follows a ``UrlPolicy``.

    Args:
        policy: rules for fetching.
        resolve: host and port -> addresses; None for ``SystemResolver``.
        ssl_context: certificate authorities for HTTPS; None for the system's.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        *,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=0,
            network_backend=_CheckedNetwork(policy, resolve or SystemResolver()),
        )

    async def close(self) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str) -> bytes:
        """Return the body of ``url``.

        Raises:
            UrlRefused: the policy does not allow the URL.
            ImageTooLarge: the body is larger than the policy allows.
            ImageUnreachable: the host does not answer with status 200 in time.
        """
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                return await self._follow(url)
        except PromptServeError:
            raise
        except TimeoutError as error:
            raise _unreachable(url, f"took more than {self._policy.timeout_s:g} s") from error
        except (httpcore.TimeoutException, httpcore.NetworkError, OSError, UnicodeError) as error:
            raise _unreachable(url, "gave no answer") from error
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise _unreachable(url, "does not speak HTTP") from error

    async def _follow(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(_checked(url, self._policy))
            if isinstance(answer, bytes):
                return answer
            if url.lower().startswith("https:") and not answer.lower().startswith("https:"):
                raise _refused(url, "redirects from https to a URL without https")
            url = answer
        raise _unreachable(url, f"has more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """Return the body, or the URL that the answer redirects to."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = [(b"Host", url.netloc), *_HEADERS]
        async with self._pool.stream("GET", target, headers=headers) as response:
            received = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in received:
                return _joined(url, received[b"location"])
            if response.status != 200:
                raise _unreachable(str(url), f"was answered with status {response.status}")
            if received.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _unreachable(str(url), "was sent compressed, which was not requested")
            return await self._read(str(url), response)

    async def _read(self, url: str, response: httpcore.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_stream():
            # Twice, for the copy that is returned.
            await current_request().memory.grow_async(2 * len(chunk), "bodies")
            body += chunk
            if len(body) > self._policy.max_bytes:
                raise ImageTooLarge(
                    f"The image at {_shown(url)} is larger than the maximum of "
                    f"{self._policy.max_bytes:,} bytes. Scale it down, or send it in the request.",
                    max_bytes=self._policy.max_bytes,
                )
        return bytes(body)


class UrlImageLoader:
    """Loads the images that a request gives as URLs, if the settings allow it."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._fetcher: UrlFetcher | None = None
        # A server that never ends its answers holds connections; not those of others as well.
        self._slots = WeakValueDictionary[Hashable, asyncio.Semaphore]()  # by caller
        if settings.image_urls:
            policy = UrlPolicy(
                hosts=parse_hosts(settings.image_url_hosts),
                private_hosts=parse_hosts(settings.image_url_private_hosts),
                timeout_s=settings.image_url_timeout_s,
                max_bytes=settings.image_url_max_bytes,
            )
            self._fetcher = UrlFetcher(policy, ssl_context=httpx.create_ssl_context())

    async def fetch_all(
        self, urls: Sequence[str], deadline: Deadline
    ) -> list[bytes | PromptServeError]:
        """Fetch the image of each URL, or return its error.

        All images of a request together may have as many bytes as a body, and all fetches end at
        the request's deadline.
        """
        if self._fetcher is None:
            return [
                UrlRefused(
                    "This service does not fetch images from URLs. Send the image itself, or start "
                    "the service with PROMPT_SERVE_IMAGE_URLS=true."
                )
                for _ in urls
            ]
        budget = _ByteBudget(self._max_body_bytes)
        slots = asyncio.Semaphore(_FETCHES_PER_REQUEST), self._slots_of_caller()
        one = partial(self._fetch, self._fetcher, deadline, budget, slots)
        return list(await asyncio.gather(*map(one, urls)))

    def _slots_of_caller(self) -> asyncio.Semaphore:
        caller = current_request().turn.caller
        slots = self._slots.get(caller)
        if slots is None:
            slots = self._slots[caller] = asyncio.Semaphore(_FETCHES_PER_CALLER)
        return slots

    async def _fetch(
        self,
        fetcher: UrlFetcher,
        deadline: Deadline,
        budget: "_ByteBudget",
        slots: tuple[asyncio.Semaphore, asyncio.Semaphore],
        url: str,
    ) -> bytes | PromptServeError:
        try:
            # asyncio's clock is time.monotonic, as is that of deadlines.
            async with asyncio.timeout_at(deadline.at), slots[0], slots[1]:
                return budget.spend(await fetcher.fetch(url))
        except TimeoutError:
            return DeadlineExceeded(
                "The image was not fetched before the request's deadline.",
                timeout_s=deadline.timeout_s,
            )
        except PromptServeError as error:
            return error


class _ByteBudget:
    """Bytes that a request may still fetch."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def spend(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise RequestTooLarge(
                f"The images that the request gives as URLs have more than {self._max_bytes:,} "
                f"bytes in total. Split it into several requests.",
                max_body_bytes=self._max_bytes,
            )
        return data


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Network that connects only to checked addresses. TLS still verifies the host name."""

    def __init__(self, policy: UrlPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        private_allowed = _matches(host, self._policy.private_hosts)
        if not addresses or not (private_allowed or all(map(is_public, addresses))):
            raise UrlRefused(
                f"The host {host[:_SHOWN_CHARACTERS]!r} does not have a public address. "
                f"Send the image in the request."
            )
        *others, last = addresses
        for address in others:
            with suppress(httpcore.NetworkError, httpcore.TimeoutException):
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise UrlRefused("A URL may not name a socket of this machine.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _checked(text: str, policy: UrlPolicy) -> httpx.URL:
    """Parse a URL and check all that can be checked before its host is resolved."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _refused(text, f"is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _refused(text, "is not of the form http://host/ or https://host/")
    if not 0 < (url.port or 80) < 65_536:
        raise _refused(text, "has an invalid port")
    if url.userinfo:
        raise _refused(text, "contains a user name")
    if policy.hosts and not _matches(url.host, policy.hosts):
        raise _refused(text, "has a host that this service does not fetch from")
    return url


def _matches(host: str, patterns: frozenset[str]) -> bool:
    host = host.lower().rstrip(".")
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


def _joined(url: httpx.URL, location: bytes) -> str:
    try:
        return str(url.join(location.decode("ascii")))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _refused(str(url), "redirects to something that is not a URL") from error


def _shown(url: str) -> str:
    """Return a URL without its query, which may contain a signature."""
    return url.partition("?")[0][:_SHOWN_CHARACTERS]


def _refused(url: str, reason: str) -> UrlRefused:
    return UrlRefused(f"The URL {_shown(url)!r} {reason}.")


def _unreachable(url: str, reason: str) -> ImageUnreachable:
    return ImageUnreachable(f"The image at {_shown(url)!r} {reason}.")
