"""Network settings of the environment: the proxy and the certificates for one service.

``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``
are read here and not by httpx: it also sends requests to this machine through a proxy, reads
neither networks nor brackets in ``NO_PROXY``, and rejects settings that it does not need.
"""

import importlib.util
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.request import getproxies

import httpx

from prompt_serve.errors import ConfigInvalid, DependencyMissing

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_KEY_HEADERS = ("Authorization", "X-Api-Key")
_PORTS = {"http": 80, "https": 443}
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = {"SSL_CERT_FILE": Path.is_file, "SSL_CERT_DIR": Path.is_dir}


def parse_url(text: str, schemes: Sequence[str]) -> httpx.URL:
    """Parse the URL of a server.

    Raises:
        ValueError: not a URL with a host, and with one of ``schemes``; the message is the reason.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(str(error).rstrip(".")) from error
    if url.scheme not in schemes:
        raise ValueError(f"unknown scheme {url.scheme!r}" if url.scheme else "no scheme")
    if not url.host or "%20" in url.host:  # httpx encodes a space
        raise ValueError("no valid host")
    if not 0 < (url.port or 80) < 65_536:
        raise ValueError(f"invalid port {url.port}")
    return url


def find_proxy(url: httpx.URL) -> httpx.Proxy | None:
    """Return the proxy for requests to ``url``; None for a direct connection.

    Services on this machine are always connected to directly.

    Raises:
        ConfigInvalid: the proxy's URL is invalid.
        DependencyMissing: a SOCKS proxy needs a package that is not installed.
    """
    if is_loopback(url.host):
        return None
    proxies = getproxies()
    kind = next((kind for kind in (url.scheme, "all") if proxies.get(kind, "").strip()), None)
    if kind is None or _is_excluded(url, proxies.get("no", "")):
        return None
    return _parse_proxy(proxies[kind].strip(), f"{kind.upper()}_PROXY")


def check_key_is_safe(url: httpx.URL, headers: httpx.Headers, proxy: httpx.Proxy | None) -> None:
    """Reject a key in requests that another machine's proxy could read.

    Raises:
        ConfigInvalid: the connection is not encrypted and leads through a proxy elsewhere.
    """
    has_key = bool(url.userinfo) or any(name in headers for name in _KEY_HEADERS)
    if proxy is None or url.scheme == "https" or not has_key or is_loopback(proxy.url.host):
        return
    raise ConfigInvalid(
        f"The proxy {proxy_name(proxy)} could read the API key, because {url.scheme}://{url.host} "
        f"is not encrypted. Use an https:// address of the service, or connect to it directly: "
        f"NO_PROXY={url.host}"
    )


def tls_context(url: httpx.URL, proxy: httpx.Proxy | None) -> ssl.SSLContext:
    """Return the trusted certificates; none at all if neither service nor proxy uses TLS.

    Raises:
        ConfigInvalid: ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` has no certificates.
    """
    if url.scheme != "https" and (proxy is None or proxy.url.scheme != "https"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for variable, exists in _CERTIFICATES.items():
        path = os.environ.get(variable)
        if not path:
            continue
        if not exists(Path(path)):
            raise ConfigInvalid(
                f"{variable} is {path!r}, which does not exist. Correct it or unset it."
            )
        break  # the file has priority over the folder
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one, too
        raise ConfigInvalid(
            f"SSL_CERT_FILE is {os.environ.get('SSL_CERT_FILE')!r}, which cannot be read as "
            f"certificates in PEM format: {error}"
        ) from error


def proxy_name(proxy: httpx.Proxy) -> str:
    """Return the URL of a proxy without its password."""
    return f"{proxy.url.scheme}://{proxy.url.netloc.decode('ascii')}"


def is_loopback(host: str) -> bool:
    """Return True if a host of a URL is this machine."""
    address = _address(host)
    if address is None:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(host: str) -> _Address | None:
    """Parse an address, 127.1 and other short forms included; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_excluded(url: httpx.URL, no_proxy: str) -> bool:
    return any(_matches(url, entry) for entry in re.split(r"[\s,]+", no_proxy) if entry)


def _matches(url: httpx.URL, entry: str) -> bool:
    """Return True if an entry of NO_PROXY covers a URL.

    Entries are a domain (with or without ``.`` or ``*.`` before it), an address or a network, all
    with or without scheme, brackets and port.
    """
    scheme, _, host = entry.lower().rpartition("://")
    port = ""
    if host.count(":") == 1 or "]:" in host:
        host, _, port = host.rpartition(":")
    if scheme not in ("", "all", url.scheme):
        return False
    if port and port != str(url.port or _PORTS[url.scheme]):
        return False
    host = host.replace("[", "").replace("]", "")
    if host == "*":
        return True
    address = _address(url.host)
    if address is None:
        domain = host.removeprefix("*").strip(".")
        return f".{url.host.rstrip('.')}".endswith(f".{domain}")
    try:
        return address in ipaddress.ip_network(host, strict=False)
    except ValueError:  # a domain
        return False


def _parse_proxy(text: str, variable: str) -> httpx.Proxy:
    # A proxy without a scheme is an HTTP proxy; GNOME writes socks:// for SOCKS 5.
    full = text if "://" in text else f"http://{text}"
    full = re.sub("^socks://", "socks5://", full, flags=re.IGNORECASE)
    shown = re.sub("//.*@", "//", full)  # without the password
    try:
        url = parse_url(full, _PROXY_SCHEMES)
    except ValueError as error:
        raise ConfigInvalid(
            f"The proxy {shown!r} ({variable}) is invalid: {error}. Expected a URL such as "
            f"http://proxy.example:3128. Correct it, or unset {variable}."
        ) from error
    if url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise DependencyMissing(
            f"The proxy {shown} ({variable}) needs socksio: pip install 'httpx[socks]'",
            missing="socksio",
        )
    return httpx.Proxy(url)
