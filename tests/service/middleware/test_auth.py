"""Authentication and roles, against a started service with keys."""

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from prompt_serve.client import Client
from prompt_serve.errors import NotAllowed, NotAuthenticated
from prompt_serve.schemas import Problem
from prompt_serve.service.middleware.auth import is_loopback, required_action
from prompt_serve.service.middleware.redirects import REDIRECTS
from tests.service.process import ROOT, environment, refused_start, service
from tests.service.secured_service import SecuredService, open_keys

# The page's own files, which are the same in every service.
OF_THE_PAGE = {
    "/v1/ui",
    "/v1/ui/ui.css",
    "/v1/ui/ui.js",
    "/v1/ui/samples/basketball.png",
    "/v1/ui/samples/bicycle.png",
    "/v1/ui/samples/cat.png",
    "/v1/ui/samples/guitar.png",
    "/v1/ui/samples/licenses.md",
    "/v1/ui/samples/pizza.png",
    "/v1/ui/samples/rainbow.png",
}
PUBLIC = {"/livez", "/readyz", "/healthz"} | OF_THE_PAGE
# Routes that are not in this list need the role admin: a new route must be added on purpose.
FOR_INFER = {
    "GET /",
    "GET /docs.json",
    "GET /schema.json",
    "GET /static_content",
    "GET /metrics",
    "GET /v1/docs",
    "GET /v1/docs/docs.js",
    "GET /v1/docs/swagger-ui-bundle.js",
    "GET /v1/docs/swagger-ui.css",
    "GET /v1/info",
    "GET /v1/openapi.json",
    "GET /v1/tasks",
    "GET /v1/tasks/{name}",
    "GET /v1/tasks/{name}/file",
    "GET /v1/tasks/{name}/history",
    "POST /classify",
    "POST /v1/classify",
    "POST /v1/embed",
    "POST /v1/score",
}
FOR_ADMIN = {
    "DELETE /v1/tasks/{name}",
    "GET /v1/audit",
    "POST /v1/tasks",
    "PUT /v1/tasks/{name}",
}
GONE_WITHIN_S = 1.0


@pytest.fixture(scope="module")
def routes() -> set[tuple[str, str]]:
    """Method and template of every route, listed by a subprocess: BentoML's imports warn."""
    command = [sys.executable, "-m", "tests.service.list_routes"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    return {(method, path) for method, path in json.loads(done.stdout)}


def path_of(template: str) -> str:
    return re.sub(r"\{\w+\}", "some", template)


def test_routes_of_every_framework_are_listed(routes: set[tuple[str, str]]) -> None:
    found = {f"{method} {path}" for method, path in routes}
    assert {*FOR_INFER, *FOR_ADMIN, *(f"GET {path}" for path in PUBLIC)} <= found


def test_every_route_asks_for_a_key_except_the_probes_and_the_page(
    secured: SecuredService, routes: set[tuple[str, str]]
) -> None:
    with secured.client(None) as http:
        for method, template in sorted(routes):
            answer = http.request(method, path_of(template))
            if template in REDIRECTS and method in ("GET", "HEAD"):
                assert answer.status_code == 307, template  # to a page that asks for a key
                continue
            expected = 200 if template in PUBLIC else 401
            assert answer.status_code == expected, (method, template)
            if expected == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer"), template
                assert answer.headers["content-type"] == "application/problem+json"
        for path in (
            "/nonsense", "/v1/nonsense", "/v1/../metrics", "//v1/info", "/livez/", "/v1/ui/info",
            "/v1/ui/../info", "/v1/ui/samples/../../info", "/v1/ui/ui.html", "/v1/ui/samples/",
            "/v1/ui%2F..%2Finfo", "/v1/ui/samples/%2e%2e/ui.js", "/v1/uix", "/V1/ui/x",
        ):  # fmt: skip
            assert http.get(path).status_code == 401, path
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert http.request(method, "/v1/ui").status_code == 401, method


def test_the_page_without_a_key_tells_nothing_of_the_service(secured: SecuredService) -> None:
    """It is what stands in the package, and no header names a version, a task or a key."""
    package = ROOT / "prompt_serve"
    with secured.client(secured.infer) as http:
        info = http.get("/v1/info").json()
    secrets = {info["version"], info["backbone"]["fingerprint"], str(secured.served.home)}
    secrets |= {secured.infer, secured.admin}
    with secured.client(None) as http:
        for path in sorted(OF_THE_PAGE):
            answer = http.get(path)
            assert answer.status_code == 200, path
            assert any(
                file.is_file() and file.read_bytes() == answer.content
                for folder in ("service/web", "assets/emoji")
                for file in (package / folder).rglob("*")
            ), path
            assert not secrets & set(answer.headers.values())
            assert "www-authenticate" not in answer.headers
            if path.endswith((".js", ".css", "ui")):
                assert not any(secret in answer.text for secret in secrets), path
        missing = http.get("/v1/ui/samples/dog.png")
        assert missing.status_code == 404
        assert not any(secret in missing.text for secret in secrets)


def test_the_infer_role_reads_and_asks_and_nothing_else(
    secured: SecuredService, routes: set[tuple[str, str]]
) -> None:
    with secured.client(secured.infer) as http:
        for method, template in sorted(routes):
            answer = http.request(method, path_of(template))
            method = "GET" if method == "HEAD" else method
            if template in PUBLIC or f"{method} {template}" in FOR_INFER:
                assert answer.status_code not in (401, 403), (method, template)
                continue
            assert answer.status_code == 403, (method, template)
            action = required_action(method, path_of(template))
            assert f'scope="{action}"' in answer.headers["www-authenticate"]
            if method != "HEAD" and answer.content:
                assert Problem.model_validate_json(answer.content).code == "not-allowed"
        assert http.get("/v1/nonsense").status_code == 403


def test_the_admin_role_changes_tasks_and_reads_who_did(secured: SecuredService) -> None:
    body = {"name": "audited", "class_names": ["a", "b"]}
    with secured.client(secured.admin) as http:
        made = http.post("/v1/tasks", json=body, headers={"x-request-id": "made-by-a-test"})
        assert made.status_code == 201
        assert http.delete("/v1/tasks/audited").status_code == 204
        entries = http.get("/v1/audit", params={"subject": "audited"}).json()["entries"]
        page = http.get("/v1/audit", params={"limit": 1}).json()
        older = http.get("/v1/audit", params={"limit": 1, "before": page["next"]}).json()

    removed, put = entries
    version = made.json()["version"]
    assert (put["before"], put["after"]) == (None, version)
    assert (removed["before"], removed["after"]) == (version, None)
    assert {entry["actor"] for entry in entries} == {"admin"}
    assert put["request_id"] == "made-by-a-test"
    assert put["key_id"] in secured.admin
    assert page["entries"][0]["id"] > older["entries"][0]["id"]


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_both_headers_carry_a_key(secured: SecuredService, header: str) -> None:
    scheme = "Bearer " if header == "authorization" else ""
    with secured.client(None, **{header: scheme + secured.infer}) as http:
        assert http.get("/v1/info").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/info", "/v1/tasks", "/v1/tasks/none", "/v1/none", "/metrics", "/v1/audit", "/docs.json"],
)
@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_an_answer_to_a_key_is_for_no_other_caller(
    secured: SecuredService, header: str, path: str
) -> None:
    """Caches that callers share know that for ``Authorization`` alone."""
    scheme = "Bearer " if header == "authorization" else ""
    with secured.client(None, **{header: scheme + secured.admin}) as http:
        assert http.get(path).headers["cache-control"] == "private"


def test_wrong_keys_are_refused_and_never_repeated(secured: SecuredService) -> None:
    right = secured.infer
    swapped = right[:-1] + ("A" if right[-1] != "A" else "B")
    unknown = "ps_" + "0" * 12 + right[15:]
    for wrong in (swapped, unknown, right + "x", "ps_", "hunter2hunter2", right.upper()):
        with secured.client(wrong) as http:
            answer = http.get("/v1/info")
        assert answer.status_code == 401, wrong
        assert wrong == "ps_" or wrong not in answer.text  # "ps_..." is in the help


@pytest.mark.parametrize(
    "credentials",
    [
        *(b"Basic \xff\xfe", b"Basic \xc3\xa9", b"Basic", b"Basic =", b"Basic gICA", b"Basic YTpi"),
        *(b"Bearer \xff", b"Bearer ps_\xe9_\xe9", b"Bearer", b"\xff \xff", b"Digest a=b"),
    ],
)
def test_malformed_credentials_are_wrong_ones(secured: SecuredService, credentials: bytes) -> None:
    for name in (b"authorization", b"x-api-key"):
        answer = httpx.get(f"{secured.served.url}/v1/info", headers=[(name, credentials)])
        assert answer.status_code == 401


def test_a_revoked_or_expired_key_stops_within_a_second(secured: SecuredService) -> None:
    with open_keys(secured.served.home) as keys:
        token, key = keys.create("leaving", "infer")
        with secured.client(token) as http:
            assert http.get("/v1/info").status_code == 200
            keys.revoke("leaving")
            detail = _refused_after(http, time.monotonic() + GONE_WITHIN_S)
        assert "'leaving' is revoked" in detail
        soon = datetime.now(UTC) + timedelta(seconds=2)
        token, _ = keys.create("expiring", "infer", soon)
        with secured.client(token) as http:
            detail = _refused_after(http, time.monotonic() + 2)
        assert "'expiring' is expired" in detail
        used = _until(lambda: [k.last_used for k in keys.all() if k.id == key.id and k.last_used])
        assert datetime.fromisoformat(used[0]) <= datetime.now(UTC)


def _refused_after(http: httpx.Client, end: float) -> str:
    """Send requests until the key is refused; none sent after ``end`` may be answered."""
    while True:
        sent_at = time.monotonic()
        answer = http.get("/v1/info")
        if answer.status_code == 401:
            return str(answer.json()["detail"])
        assert answer.status_code == 200
        assert sent_at < end


def _until(found: Callable[[], list[Any]]) -> list[Any]:
    """Call ``found`` until it returns something."""
    give_up = time.monotonic() + 60
    while not (something := found()):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return something


def test_only_browsers_of_the_allowed_origin_may_ask(secured: SecuredService) -> None:
    preflight = {
        "access-control-request-method": "PUT",
        "access-control-request-headers": "x-api-key",
    }
    with secured.client(None) as http:
        allowed = http.options(
            "/v1/tasks/a", headers={"origin": "https://page.example", **preflight}
        )
        denied = http.options(
            "/v1/tasks/a", headers={"origin": "https://other.example", **preflight}
        )
        unauthorized = http.get("/v1/info", headers={"origin": "https://page.example"})

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert "PUT" in allowed.headers["access-control-allow-methods"]
    assert denied.status_code == 400
    assert "access-control-allow-origin" not in denied.headers
    # The page must be able to read why it was refused.
    assert unauthorized.status_code == 401
    assert unauthorized.headers["access-control-allow-origin"] == "https://page.example"


def test_a_browser_is_asked_for_the_key_and_may_not_be_used_by_other_pages(
    secured: SecuredService,
) -> None:
    basic = "Basic " + base64.b64encode(f"key:{secured.admin}".encode()).decode()
    with secured.client(None, accept="text/html") as http:
        without_key = http.get("/v1/docs")
        opened = http.get("/v1/docs", headers={"authorization": basic})
        foreign = http.delete("/v1/tasks/x", headers={"authorization": basic})
        own = http.delete(
            "/v1/tasks/x", headers={"authorization": basic, "sec-fetch-site": "same-origin"}
        )

    assert without_key.headers["www-authenticate"].startswith("Basic ")
    assert (opened.status_code, foreign.status_code, own.status_code) == (200, 401, 404)


HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


@pytest.mark.parametrize("path", ["/v1/docs", "/v1/info", "/v1/tasks", "/metrics", "/v1/nothing"])
@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ({"accept": HTML, "sec-fetch-mode": "navigate"}, "Basic"),
        ({"accept": HTML}, "Basic"),  # plain http to another machine has no Sec-Fetch-Mode
        ({"accept": "*/*", "sec-fetch-mode": "cors"}, "Bearer"),
        ({"accept": HTML, "sec-fetch-mode": "cors"}, "Bearer"),
        ({"accept": HTML, "sec-fetch-mode": "same-origin"}, "Bearer"),
        ({"accept": HTML, "sec-fetch-mode": "no-cors"}, "Bearer"),
        ({"accept": "application/json"}, "Bearer"),
        ({}, "Bearer"),
    ],
)
def test_only_an_address_that_a_person_opened_makes_the_browser_prompt(
    secured: SecuredService, path: str, headers: dict[str, str], scheme: str
) -> None:
    with secured.client(None, **headers) as http:
        answer = http.get(path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith(f"{scheme} ")


def test_the_client_sends_its_key_and_understands_refusals(
    secured: SecuredService, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = secured.served.url
    with Client(url, api_key=secured.infer) as client:
        assert client.info().provider == "CPUExecutionProvider"
        with pytest.raises(NotAllowed, match="needs a key that may upload") as refused:
            client.delete("pets")
        assert refused.value.action == "upload"
    with Client(url) as client, pytest.raises(NotAuthenticated, match="This needs a key"):
        client.info()
    monkeypatch.setenv("PROMPT_SERVE_API_KEY", f"{secured.infer}\n")
    with Client(url) as client:
        assert client.info().limits.max_images > 0


def test_without_any_key_only_this_machine_is_answered(tiny_bundle: Path, tmp_path: Path) -> None:
    with service(tmp_path, tiny_bundle) as served, httpx.Client(base_url=served.url) as http:
        assert http.get("/v1/info").status_code == 200
        # A page whose name was made to point here.
        assert http.get("/v1/info", headers={"host": "evil.example"}).status_code == 401
        with open_keys(tmp_path) as keys:
            keys.create("first", "infer")
        give_up = time.monotonic() + 10
        while http.get("/v1/info").status_code == 200:
            assert time.monotonic() < give_up
        assert http.get("/v1/info").status_code == 401
        with open_keys(tmp_path) as keys:
            keys.revoke("first")
        time.sleep(0.6)  # longer than anything is remembered
        assert http.get("/v1/info").status_code == 401  # never open again


@pytest.mark.serve
def test_a_service_for_the_network_does_not_start_without_keys(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    output = refused_start(environment(tmp_path, tiny_bundle), "--host", "0.0.0.0")

    assert "would listen on 0.0.0.0 without any key" in output
    assert "prompt-serve keys create" in output


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((name, True) for name in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((name, False) for name in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")),
    ],
)
def test_which_addresses_are_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_unknown_routes_need_admin() -> None:
    assert required_action("GET", "/v1/something-new") == "admin"
    assert required_action("BREW", "/v1/classify") == "admin"
    assert required_action("POST", "/livez") == "admin"
    assert required_action("GET", "/v1/tasks/a/file") == "read"
