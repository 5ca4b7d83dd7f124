"""Fetch images from URLs, without being led astray (SSRF).

A host is resolved once, by us; all its addresses are checked, and the connection goes to one that
was checked. A name that answers otherwise the second time (DNS rebinding) is never asked a second
time. Redirects are fetches like the first. Bodies are counted as they come; what they are is found
out by decoding them, not by what their sender says.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

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
from prompt_serve.service.inference.requests import Deadline
from prompt_serve.service.settings import Settings

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_CONNECTIONS = 32
_FETCHES_OF_A_REQUEST = 8  # side by side
_SHOWN_CHARACTERS = 200
_HEADERS = [
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),  # compressed bodies could grow without end
    (b"Connection", b"close"),
    (b"User-Agent", b"prompt-serve"),
]

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, kw_only=True)
class UrlPolicy:
    """What may be fetched. Hosts are in lower case; ``*.b.org`` means all below b.org."""

    hosts: frozenset[str] = frozenset()  # the only ones; empty: any
    private_hosts: frozenset[str] = frozenset()  # may have addresses that are not public
    timeout_s: float = 10.0  # of one image, with resolving and redirects
    max_bytes: int = 16 * 2**20  # of one image


def hosts_of(text: str) -> frozenset[str]:
    """The hosts of a setting: with commas between them."""
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


async def system_resolver(host: str, port: int) -> list[str]:
    """All addresses of a host, as this machine resolves it."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class UrlFetcher:
    """Fetches images.

    Args:
        policy: what may be fetched.
        resolve: host and port -> addresses.
        ssl_context: whom HTTPS trusts; None: the usual authorities.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        *,
        resolve: Resolve = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=0,
            network_backend=_CheckedNetwork(policy, resolve),
        )

    async def close(self) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str) -> bytes:
        """The body of ``url``.

        Raises:
            UrlRefused: the URL may not be fetched; says why.
            ImageTooLarge: it is longer than the policy allows.
            ImageUnreachable: no answer, not in time, or none with an image.
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
                raise _refused(url, "leads from https to a URL that is not")
            url = answer
        raise _unreachable(url, f"was reached by more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """The body, or the URL that stands in its place."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = [(b"Host", url.netloc), *_HEADERS]
        async with self._pool.stream("GET", target, headers=headers) as response:
            told = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in told:
                return _joined(url, told[b"location"])
            if response.status != 200:
                raise _unreachable(str(url), f"was answered with status {response.status}")
            if told.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _unreachable(str(url), "was sent compressed, which was not asked for")
            return await self._read(str(url), response)

    async def _read(self, url: str, response: httpcore.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > self._policy.max_bytes:
                raise ImageTooLarge(
                    f"The image at {_shown(url)} is longer than the {self._policy.max_bytes:,} "
                    f"bytes that are fetched. Send it in the request, or scale it down.",
                    max_bytes=self._policy.max_bytes,
                )
        return bytes(body)


class ImageUrls:
    """The images of a request that are behind URLs, as far as the settings allow it."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._fetcher: UrlFetcher | None = None
        if settings.image_urls:
            policy = UrlPolicy(
                hosts=hosts_of(settings.image_url_hosts),
                private_hosts=hosts_of(settings.image_url_private_hosts),
                timeout_s=settings.image_url_timeout_s,
                max_bytes=settings.image_url_max_bytes,
            )
            self._fetcher = UrlFetcher(policy, ssl_context=httpx.create_ssl_context())

    async def fetch_all(
        self, urls: Sequence[str], deadline: Deadline
    ) -> list[bytes | PromptServeError]:
        """The image of each URL, or why there is none; no more bytes in all than a body may have.

        Fetches end with the request's time.
        """
        if self._fetcher is None:
            return [
                UrlRefused(
                    "This service does not fetch images from URLs. Send the image itself, or start "
                    "the service with PROMPT_SERVE_IMAGE_URLS=true."
                )
                for _ in urls
            ]
        budget = _Budget(self._max_body_bytes)
        side_by_side = asyncio.Semaphore(_FETCHES_OF_A_REQUEST)
        one = partial(self._fetch, self._fetcher, deadline, budget, side_by_side)
        return list(await asyncio.gather(*map(one, urls)))

    async def _fetch(
        self,
        fetcher: UrlFetcher,
        deadline: Deadline,
        budget: "_Budget",
        side_by_side: asyncio.Semaphore,
        url: str,
    ) -> bytes | PromptServeError:
        try:
            # asyncio's clock is time.monotonic, on which deadlines are.
            async with asyncio.timeout_at(deadline.at), side_by_side:
                return budget.taken(await fetcher.fetch(url))
        except TimeoutError:
            return DeadlineExceeded(
                "The image was not fetched before the request's time was up.",
                timeout_s=deadline.timeout_s,
            )
        except PromptServeError as error:
            return error


class _Budget:
    """Bytes that one request may still fetch."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise RequestTooLarge(
                f"The images behind the request's URLs have more than {self._max_bytes:,} bytes. "
                f"Split it into several requests.",
                max_body_bytes=self._max_bytes,
            )
        return data


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Opens connections to checked addresses alone. TLS still checks the host's name."""

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
        is_private_allowed = _matches(host, self._policy.private_hosts)
        if not addresses or not (is_private_allowed or all(map(is_public, addresses))):
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
        raise UrlRefused("A URL does not lead to a socket of this machine.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _checked(text: str, policy: UrlPolicy) -> httpx.URL:
    """The URL, which may be fetched as far as it can be told before its host is resolved."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _refused(text, f"is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _refused(text, "is not of the kind http://host/ or https://host/")
    if not 0 < (url.port or 80) < 65_536:
        raise _refused(text, "has a port that there is not")
    if url.userinfo:
        raise _refused(text, "has a user name in it")
    if policy.hosts and not _matches(url.host, policy.hosts):
        raise _refused(text, "has a host from which this service does not fetch")
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
        raise _refused(str(url), "leads to something that is no URL") from error


def _shown(url: str) -> str:
    """A URL without its query, which may hold a signature."""
    return url.partition("?")[0][:_SHOWN_CHARACTERS]


def _refused(url: str, why: str) -> UrlRefused:
    return UrlRefused(f"The URL {_shown(url)!r} {why}.")


def _unreachable(url: str, why: str) -> ImageUnreachable:
    return ImageUnreachable(f"The image at {_shown(url)!r} {why}.")
