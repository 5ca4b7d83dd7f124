"""Web pages of other origins, as the headers of browsers and as pages in a real one."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from prompt_serve.service.http.app import create_app
from prompt_serve.service.middleware.origin_guard import OriginGuard
from tests.service.contract.documents import operations
from tests.service.http.browser_tab import PATIENCE_MS
from tests.service.process import Served
from tests.service.secured_service import SecuredService

CHANGES = [
    *(
        (method.upper(), f"/v1{path}".replace("{name}", "guarded").replace("{version}", "0" * 64))
        for method, path, _ in operations(create_app().openapi())
        if method != "get"
    ),
    ("POST", "/classify"),  # of BentoML
]
FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://localhost"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
]
TASK = {"name": "guarded", "class_names": ["a", "b"]}


@pytest.fixture
def task(http: httpx.Client) -> Iterator[None]:
    http.post("/v1/tasks", json=TASK).raise_for_status()
    yield
    http.delete("/v1/tasks/guarded")


@pytest.mark.serve
@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: ",".join(headers.values()))
def test_no_route_but_reads_answers_a_foreign_page(
    http: httpx.Client, task: None, headers: dict[str, str]
) -> None:
    before = http.get("/v1/audit?limit=1").json()
    for method, path in CHANGES:
        for kind in ("text/plain", "application/json", "application/octet-stream"):
            answer = http.request(
                method, path, content=json.dumps(TASK), headers={**headers, "content-type": kind}
            )
            assert answer.status_code == 403, (method, path)
            problem = answer.json()
            assert problem["code"] == "origin-not-allowed"
            assert problem["header"].lower() in headers
            assert headers[problem["header"].lower()] == problem["value"]
            assert "PROMPT_SERVE_CORS_ORIGINS" in problem["detail"]
    assert http.get("/v1/audit?limit=1").json() == before
    assert http.get("/v1/tasks/guarded", headers=headers).status_code == 200


@pytest.mark.serve
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "http://own"},
        {"origin": "http://own", "sec-fetch-site": "same-origin"},
    ],
)
def test_programs_and_the_own_pages_change_tasks(
    http: httpx.Client, task: None, headers: dict[str, str]
) -> None:
    own = f"{http.base_url.scheme}://{http.base_url.netloc.decode()}"
    headers = {name: value.replace("http://own", own) for name, value in headers.items()}
    assert http.put("/v1/tasks/guarded/tags", json={"tags": []}, headers=headers).is_success


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        ("https://a.example", "a.example", True),
        ("https://a.example", "a.example:443", True),
        ("http://a.example", "a.example:80", True),
        ("http://a.example:3000", "a.example:3000", True),
        ("http://[::1]:3000", "[::1]:3000", True),
        ("http://A.example", "a.EXAMPLE", True),
        ("http://a.example:3000", "a.example", False),
        ("http://b.a.example", "a.example", False),
        ("https://a.example.evil", "a.example", False),
        ("chrome-extension://a.example", "a.example", False),
        ("http://a.example:x", "a.example", False),
        ("null", "null", False),
        ("", "", False),
    ],
)
def test_which_origins_are_the_services_own(origin: str, host: str, is_own: bool) -> None:
    answered: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered.append(scope["path"])

    async def unused(*_: Any) -> Any: ...

    headers = [(b"host", host.encode()), (b"origin", origin.encode())]
    scope: Any = {"type": "http", "method": "POST", "path": "/v1/tasks", "headers": headers}
    asyncio.run(OriginGuard(app, "https://other.example")(scope, unused, unused))
    assert answered == (["/v1/tasks"] if is_own else [])


@pytest.mark.serve
def test_a_password_that_the_browser_remembers_is_of_no_use_to_foreign_pages(
    secured: SecuredService,
) -> None:
    basic = "Basic " + base64.b64encode(f"key:{secured.admin}".encode()).decode()
    allowed, foreign = {"origin": "https://page.example"}, {"origin": "https://evil.example"}
    with secured.client(None) as http:
        for headers in FOREIGN:
            answer = http.delete("/v1/tasks/x", headers={**headers, "authorization": basic})
            assert answer.json()["code"] == "origin-not-allowed"
    with secured.client(secured.admin) as http:
        # Of the allowed origin; and of a program that sends a key, which a page cannot.
        assert http.delete("/v1/tasks/x", headers=allowed).status_code == 404
        assert http.delete("/v1/tasks/x", headers=foreign).status_code == 404
    with secured.client(None, **{"x-api-key": secured.admin}) as http:
        assert http.delete("/v1/tasks/x", headers=foreign).status_code == 404


@pytest.mark.serve
@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "text/html", "multipart/x"]
)
def test_posted_bodies_have_the_content_type_of_their_route(
    http: httpx.Client, task: None, kind: str
) -> None:
    """A browser sends these types for any page, without asking the service first."""
    headers = {"content-type": kind} if kind else {}
    body = json.dumps({**TASK, "images": [], "tasks": ["guarded"], "version": "0" * 64})
    for method, path in CHANGES:
        if method == "POST":
            answer = http.post(path, content=body, headers=headers)
            assert answer.status_code in (400, 415, 422), (path, answer.text)


@pytest.mark.serve
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "x"])
def test_a_name_that_was_made_to_point_here_is_not_answered(http: httpx.Client, host: str) -> None:
    """To the browser a page of that name has the service's own origin."""
    headers = {"host": host, "sec-fetch-site": "same-origin", "origin": f"http://{host}"}
    for method, path in [*CHANGES, ("GET", "/v1/tasks"), ("GET", "/v1/info"), ("GET", "/metrics")]:
        assert http.request(method, path, headers=headers).status_code == 401, (method, path)


PAGE = """<!doctype html><title>a page</title>
<form id="form" method="post" target="frame" enctype="multipart/form-data"></form>
<iframe name="frame"></iframe>
<script>
const fetches = (url, body) => [
  {method: "POST", mode: "no-cors", body},
  {method: "POST", mode: "no-cors", body: new Blob([body])},
  {method: "POST", mode: "no-cors", body, credentials: "include"},
  {method: "POST", mode: "cors", body, headers: {"content-type": "application/json"}},
  {method: "PUT", mode: "cors", body},
  {method: "DELETE", mode: "cors"},
].map(options => fetch(url, options).then(answer => answer.type, () => "refused"));
async function attack(url, body) {
  const types = await Promise.all(fetches(url, body));
  navigator.sendBeacon(url, body);
  const form = document.getElementById("form");
  form.action = url;
  form.submit();
  await new Promise(resolve => { document.querySelector("iframe").onload = resolve; });
  return types;
}
</script>"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])  # same-site, cross-site
def test_a_page_in_a_browser_changes_nothing(
    browser: Browser, served: Served, http: httpx.Client, task: None, foreign_port: int, name: str
) -> None:
    before = http.get("/v1/audit?limit=1").json()
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    tab.goto(f"http://{name}:{foreign_port}/")
    statuses: list[tuple[str, int]] = []
    tab.on("response", lambda answer: statuses.append((answer.request.method, answer.status)))
    paths = [path for method, path in CHANGES if method == "POST"]
    for path in paths:
        types = tab.evaluate(
            "([url, body]) => attack(url, body)", [served.url + path, json.dumps(TASK)]
        )
        assert set(types[:3]) == {"opaque"}  # sent, and answered with a refusal
        assert set(types[3:]) == {"refused"}  # by the preflight
    tab.close()

    posts = [status for method, status in statuses if method == "POST"]
    assert set(posts) == {403}
    assert len(posts) >= 4 * len(paths)
    assert http.get("/v1/audit?limit=1").json() == before
