"""Proxies and certificates of the environment, with a real proxy on this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prompt_serve.client import Client
from prompt_serve.client.network_settings import find_proxy, is_loopback
from prompt_serve.errors import (
    ConfigInvalid,
    DependencyMissing,
    NotReady,
    ServiceFailed,
    ServiceUnreachable,
)
from tests.client.fake_service import FakeService
from tests.client.http_proxy import HttpProxy, running_http_proxy

ELSEWHERE = "http://service.example:3000"  # a name that only the proxy can reach
SECRET = "ps_secret"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "PROMPT_SERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy(service: FakeService) -> Iterator[HttpProxy]:
    with running_http_proxy(service.port) as proxy:
        yield proxy


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["", "http://", "HTTP://", "http://user:password@"])
def test_a_service_elsewhere_is_reached_through_the_proxy(
    variable: str, scheme: str, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f" {scheme}127.0.0.1:{proxy.port} ")

    with Client(ELSEWHERE) as client:
        assert client.info().tasks == 1

    request_line, headers = proxy.seen[0]
    assert request_line == f"GET {ELSEWHERE}/v1/info HTTP/1.1"
    assert ("proxy-authorization" in headers) == ("@" in scheme)


@pytest.mark.parametrize(
    "setting",
    [
        "PROXY",
        "http://10.255.255.1:3128",
        "socks5://127.0.0.1:1",
        "socks://127.0.0.1:1",
        "http://",
        "ftp://proxy",
        "http://host:port",
        "http://[::1",
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])
def test_a_service_on_this_machine_is_never_asked_through_a_proxy(
    setting: str,
    host: str,
    service: FakeService,
    proxy: HttpProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, setting.replace("PROXY", proxy.url))
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")

    with Client(f"http://{host}:{service.port}", api_key=SECRET, retries=0) as client:
        assert client.info().tasks == 1

    assert proxy.seen == []


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("http://", "no valid host"),
        ("ftp://proxy:21", "unknown scheme 'ftp'"),
        ("http://proxy:port", "Invalid port"),
        ("http://[::1", "Invalid"),
        ("http://proxy:99999", "invalid port 99999"),
        ("https://", "no valid host"),
        ("http://user:pass word@", "no valid host"),
    ],
)
def test_a_malformed_proxy_is_one_clear_error(
    scheme: str, setting: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{scheme.upper()}_PROXY"
    monkeypatch.setenv(variable, setting)

    with pytest.raises(ConfigInvalid, match=rf"\({variable}\) is invalid: .*{fault}") as caught:
        Client(f"{scheme}://service.example")

    assert "pass word" not in str(caught.value)


@pytest.mark.skipif("socksio" in sys.modules, reason="socksio is installed")
@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h", "SOCKS5", "Socks"])
def test_a_socks_proxy_says_what_it_needs(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:password@127.0.0.1:1080/")

    with pytest.raises(DependencyMissing, match=r"pip install 'httpx\[socks\]'") as caught:
        Client(ELSEWHERE)

    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "http://service.example"),
        ("service.example", "http://service.example:3000"),
        ("example", "http://service.example"),
        (".example", "http://service.example"),
        ("*.example", "http://a.service.example"),
        ("SERVICE.example", "http://service.example"),
        ("service.example:3000", "http://service.example:3000"),
        ("service.example:80", "http://service.example"),
        ("http://service.example", "http://service.example"),
        ("10.0.0.0/8", "http://10.20.30.40:3000"),
        ("10.20.30.40", "http://10.20.30.40"),
        ("10.20.30.40:3000", "http://10.20.30.40:3000"),
        ("10.1.2.3/255.0.0.0", "http://10.20.30.40"),
        ("[fd00::1]", "http://[fd00::1]:3000"),
        ("[fd00::1]:3000", "http://[fd00::1]:3000"),
        ("fd00::1", "http://[fd00::1]"),
        ("fd00::/8", "http://[fd12::7]"),
        ("[fd00::]/8", "http://[fd12::7]"),
        ("a.example, b.example ,service.example", "http://service.example"),
        ("a.example b.example service.example", "http://service.example"),
        ("[::1],10.0.0.0/8,service.example", "http://service.example."),
    ],
)
def test_no_proxy_is_read_as_curl_reads_it(
    no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    assert find_proxy(httpx.URL(url)) is not None

    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert find_proxy(httpx.URL(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("vice.example", "http://service.example"),
        ("service.example:80", "http://service.example:3000"),
        ("https://service.example", "http://service.example"),
        ("10.0.0.0/8", "http://11.0.0.1"),
        ("10.0.0.0/8", "http://service.example"),
        ("[::1]", "http://[fd00::1]"),
        ("::/0", "http://10.0.0.1"),
        ("[", "http://service.example"),
        ("10.0.0.0/99", "http://10.0.0.1"),
        (" , ,", "http://service.example"),
    ],
)
def test_other_hosts_keep_the_proxy(
    no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert find_proxy(httpx.URL(url)) is not None


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("api.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("127.1", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost.example", False),
        ("mylocalhost", False),
        ("128.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_hosts_of_this_machine(host: str, is_here: bool) -> None:
    assert is_loopback(host) == is_here


@pytest.mark.parametrize("proxy_url", ["http://10.255.255.1:3128", "https://proxy.example"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": SECRET},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"headers": {"authorization": f"Bearer {SECRET}"}},
        {"headers": {"x-api-key": SECRET}},
        {"base_url": f"http://me:{SECRET}@service.example"},
    ],
)
def test_a_key_is_never_shown_to_a_proxy_elsewhere(
    arguments: dict[str, object], proxy_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy_url)

    with pytest.raises(ConfigInvalid, match=r"could read the API key.*https://") as caught:
        Client(**{"base_url": ELSEWHERE, **arguments})  # type: ignore[arg-type]  # one of each kind

    assert SECRET not in str(caught.value)


def test_the_key_of_the_environment_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://10.255.255.1:3128")
    monkeypatch.setenv("PROMPT_SERVE_API_KEY", SECRET)

    with pytest.raises(ConfigInvalid, match="could read the API key"):
        Client(ELSEWHERE)
    Client(ELSEWHERE, api_key="").close()  # nothing to hide


def test_a_proxy_sees_only_the_host_of_an_encrypted_connection(
    proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    with (
        Client("https://service.example", api_key=SECRET, retries=0) as client,
        pytest.raises(ServiceUnreachable, match=f"through the proxy {proxy.url}: 403"),
    ):
        client.info()

    [(request_line, headers)] = proxy.seen
    assert request_line == "CONNECT service.example:443 HTTP/1.1"
    assert SECRET not in str(headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (407, ServiceFailed),
        (403, ServiceFailed),
        (404, ServiceFailed),
        (502, NotReady),
        (503, NotReady),
    ],
)
def test_an_answer_of_the_proxy_names_it(
    status: int, kind: type[Exception], proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:password@"))
    proxy.status = status

    with (
        Client(ELSEWHERE, retries=0) as client,
        pytest.raises(kind, match=rf"through the proxy {proxy.url} \({status}\)") as caught,
    ):
        client.info()

    assert "password" not in str(caught.value)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    with (
        Client(ELSEWHERE, retries=0) as client,
        pytest.raises(ServiceUnreachable, match=r"through the proxy http://127.0.0.1:9 .*NO_PROXY"),
    ):
        client.info()


@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("SSL_CERT_FILE", None),
        ("SSL_CERT_FILE", b""),
        ("SSL_CERT_FILE", b"<html>not found</html>"),
        ("SSL_CERT_FILE", bytes(range(256))),
        ("SSL_CERT_DIR", None),
        ("SSL_CERT_DIR", b"a file"),
    ],
)
def test_certificates_that_cannot_be_read_are_one_clear_error(
    variable: str, content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(variable, str(path))

    with pytest.raises(ConfigInvalid, match=f"{variable} is '{path}'"):
        Client("https://service.example")
    Client(ELSEWHERE).close()  # needs no certificates


@pytest.mark.parametrize(
    "form", ["HTTP://{}", " http://{} ", "Http://{}/", "\thttp://{}\n", "HTTP://{}//"]
)
def test_a_url_is_read_as_people_write_it(form: str, service: FakeService) -> None:
    host = f"LOCALHOST:{service.port}"

    with Client(form.format(host)) as client:
        assert client.base_url == f"http://localhost:{service.port}"
        assert client.info().tasks == 1


@pytest.mark.parametrize("prefix", ["", "/models", "/a%20b", "/a%2Fb", "/v1"])
@pytest.mark.parametrize(
    "end",
    ["", "/", "/v1", "/v1/", "/v1//", "/v1/ui", "/v1/ui/", "/v1/docs#/tasks", "/v1/openapi.json"],
)
def test_addresses_within_a_service_lead_to_it(prefix: str, end: str) -> None:
    expected = "" if (prefix, end.rstrip("/")) == ("/v1", "") else prefix
    for host in ("http://localhost:3000", "http://me:p%40ss@127.0.0.1", "http://[::1]:3000"):
        with Client(f"{host}{prefix}{end}") as client:
            assert client.base_url == host + expected


@pytest.mark.parametrize("path", ["/v10", "/v1/tasks", "/v1x/ui", "/ui", "/av1"])
def test_other_paths_of_a_url_are_kept(path: str) -> None:
    with Client(f"http://localhost:3000{path}") as client:
        assert client.base_url == f"http://localhost:3000{path}"


@pytest.mark.parametrize("query", ["/?a=b", "/v1?a", "/v1/ui?task=pets", "?x=1", "/v1/?a=1#b"])
def test_a_query_is_no_part_of_the_url_of_a_service(query: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"is not the URL of a service \(it has a query\)"):
        Client(f"http://localhost:3000{query}")
