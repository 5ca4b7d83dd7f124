"""Every status of the service is documented in docs/reference.md and provoked over HTTP."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate

from prompt_serve.errors import ERRORS_BY_CODE
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.env_files import PREFIX
from prompt_serve.service.http.app import create_app
from prompt_serve.service.permissions import Permissions, Quota
from prompt_serve.service.problems import MEDIA_TYPE
from prompt_serve.service.settings import Settings
from prompt_serve.training.clip.backbone import Backbone
from tests.service.process import ROOT
from tests.service.prompts import bomb, conditional, learned_prompt, picture, unprobed
from tests.service.secured_service import SecuredService, open_keys

DOCUMENT = ROOT / "docs" / "reference.md"
METHODS = ("get", "post", "put", "delete")
PNG = {"content-type": "image/png"}

# Codes of errors that never reach a client of the service: they stop a start, a training or the
# client itself, or belong to base classes.
NOT_ANSWERED = {
    "backbone-error", "backbone-unavailable", "backbone-unsupported", "bundle-invalid",
    "config-invalid", "database-unsupported", "dataset-invalid", "dataset-missing",
    "dependency-missing", "download-failed", "export-parity-failed", "hub-failed", "hub-refused",
    "prompt-error", "provider-unavailable", "registry-damaged", "results-invalid",
    "service-failed", "service-unreachable",
}  # fmt: skip
# Codes that cannot be provoked here; the tests that see them.
SEEN_ELSEWHERE = {
    "body-too-slow": "middleware/test_body_limit.py",
    "deadline-exceeded": "http/test_requests.py",
    "image-unreachable": "inference/test_url_fetcher.py",
    "internal-error": "test_problems.py",
    "not-ready": "test_faults.py",
    "overloaded": "tasks/test_swaps.py",
    "request-error": "test_problems.py",
    "signature-invalid": "test_signed_tasks.py",
    "service-error": "inference/test_batcher.py",
    "version-ambiguous": "tasks/test_resolver.py",
}


@dataclass(frozen=True)
class Row:
    """Row of the table of codes."""

    status: int
    code: str
    when: str
    way_out: str


def _table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = section[section.index("\n|") + 1 :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.fixture(scope="module")
def documented() -> dict[str, Row]:
    rows = [
        Row(int(status), code.strip("`"), when, way_out)
        for status, code, when, way_out in _table("Status codes")
    ]
    assert len({row.code for row in rows}) == len(rows)
    return {row.code: row for row in rows}


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app().openapi()


def test_every_code_has_a_row_with_its_status_and_a_way_out(documented: dict[str, Row]) -> None:
    ours = {code: kind.status for code, kind in ERRORS_BY_CODE.items() if code not in NOT_ANSWERED}
    of_the_framework = {"not-found": 404, "method-not-allowed": 405}

    assert {code: row.status for code, row in documented.items()} == ours | of_the_framework
    assert all(row.when and row.way_out for row in documented.values())


def test_codes_that_are_not_provoked_here_are_seen_elsewhere() -> None:
    for code, file in SEEN_ELSEWHERE.items():
        text = (ROOT / "tests" / "service" / file).read_text()
        assert code in text or ERRORS_BY_CODE[code].__name__ in text, f"{code} in {file}"


def test_openapi_is_valid(openapi: dict[str, Any]) -> None:
    validate(openapi)


def test_openapi_says_what_bodies_look_like(openapi: dict[str, Any]) -> None:
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            text = f"{method} {path}"
            assert operation.get("description") or operation.get("summary"), text
            if method in ("post", "put") and "rollback" not in path:
                content = operation["requestBody"]["content"]
                assert content, text
                assert all(kind["schema"] for kind in content.values()), text


def test_every_route_is_documented_with_its_statuses(openapi: dict[str, Any]) -> None:
    expected = {
        f"`{method.upper()} /v1{path}`": ", ".join(sorted(operation["responses"]))
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    }
    documented = {route: statuses for route, statuses, *_ in _table("Routes")}

    table = "\n".join(f"| {route} | {statuses} | |" for route, statuses in expected.items())
    assert documented == expected, f"the table should have:\n{table}"


@pytest.mark.serve
@pytest.mark.slow
def test_each_documented_code_is_provoked_and_no_other(
    http: httpx.Client,
    secured: SecuredService,
    tiny_backbone: Backbone,
    documented: dict[str, Row],
    openapi: dict[str, Any],
) -> None:
    seen: dict[str, int] = {}
    answers = [*_provoked(http, tiny_backbone), *_provoked_by_keys(secured)]
    for name in ("codes", "codes-2"):
        http.delete(f"/v1/tasks/{name}")

    for what, response in answers:
        text = f"{what}: {response.status_code} {response.text[:300]}"
        assert response.headers["content-type"] == MEDIA_TYPE, text
        code = response.json()["code"]
        assert code == what, text
        assert documented[code].status == response.status_code, text
        seen[code] = response.status_code
        _check_openapi(openapi, response)
    assert seen.keys() | SEEN_ELSEWHERE.keys() == documented.keys()


def _check_openapi(openapi: dict[str, Any], response: httpx.Response) -> None:
    """Assert that OpenAPI lists the answer for the route."""
    request = response.request
    path = request.url.path.removeprefix("/v1")
    for template, operations in openapi["paths"].items():
        operation = operations.get(request.method.lower())
        if operation and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            assert str(response.status_code) in operation["responses"], (
                f"{request.method} {template} answered {response.status_code}, not in OpenAPI"
            )


def _provoked(http: httpx.Client, backbone: Backbone) -> Iterator[tuple[str, httpx.Response]]:
    """Yield codes, each with an answer that should carry it."""
    prompt = learned_prompt(backbone, ["a", "b"])
    put = http.put("/v1/tasks/codes", content=to_bytes(prompt))
    assert put.status_code == 201, put.text
    version = put.json()["version"]
    yield "not-found", http.get("/v1/nonsense")
    yield "method-not-allowed", http.post("/v1/info")
    foreign = {"origin": "https://evil.example"}
    yield "origin-not-allowed", http.delete("/v1/tasks/codes", headers=foreign)
    yield from _provoked_by_requests(http)
    yield "version-not-found", http.delete(f"/v1/versions/{'0' * 64}")
    yield "version-in-use", http.delete(f"/v1/versions/{version}")
    other = to_bytes(learned_prompt(backbone, ["a", "b"], seed=1))
    stale = {"if-match": f'"{"0" * 64}"'}
    yield "version-changed", http.put("/v1/tasks/codes", content=other, headers=stale)
    for code, data in _bad_prompts(backbone):
        yield code, http.put("/v1/tasks/codes-2", content=data)


def _provoked_by_requests(http: httpx.Client) -> Iterator[tuple[str, httpx.Response]]:
    classify = "/v1/classify?task=codes"
    big = httpx.get(f"{http.base_url}/v1/info").json()["limits"]["max_body_bytes"] + 1
    yield "task-not-found", http.get("/v1/tasks/nobody")
    yield "task-not-found", http.post("/v1/classify?task=nobody", content=picture(), headers=PNG)
    yield "task-name-invalid", http.put("/v1/tasks/a%20b", content=b"x")
    yield "request-invalid", http.post("/v1/classify", content=picture(), headers=PNG)
    yield "request-invalid", http.get("/v1/tasks?limit=0")
    yield "request-too-large", http.post(classify, content=bytes(big), headers=PNG)
    yield "image-invalid", http.post(classify, content=b"no image", headers=PNG)
    yield "image-too-large", http.post(classify, content=bomb(), headers=PNG)
    private = {"images": ["http://10.0.0.1/a.png"], "tasks": ["codes"]}
    yield "url-refused", http.post("/v1/classify", json=private)
    zipped = {"content-type": "application/zip"}
    yield "archive-invalid", http.post("/v1/registry/import", content=b"no zip", headers=zipped)


def _bad_prompts(backbone: Backbone) -> Iterator[tuple[str, bytes]]:
    good = learned_prompt(backbone, ["a", "b"])
    elsewhere = backbone.ref.model_copy(update={"fingerprint": "0" * 64})
    of_image = conditional(backbone.ref.text_width, backbone.ref.embed_dim)
    long = " ".join(["word"] * 50)  # more tokens than the text tower takes
    yield "prompt-file-invalid", b"no prompt file"
    yield "backbone-mismatch", to_bytes(replace(good, backbone=elsewhere))
    yield "probe-mismatch", to_bytes(replace(good, probe=good.probe + np.float16(1)))
    yield "prompt-unsupported", to_bytes(unprobed(backbone, ["a", "b"], of_image))
    yield "prompt-too-long", to_bytes(replace(good, class_names=("a", long)))


def _provoked_by_keys(secured: SecuredService) -> Iterator[tuple[str, httpx.Response]]:
    with secured.client(None) as nobody, secured.client(secured.infer) as infer:
        yield "not-authenticated", nobody.get("/v1/info")
        yield "not-allowed", infer.delete("/v1/tasks/anything")
    with open_keys(secured.served.home) as keys:
        token, key = keys.create(
            "one", Permissions.checked(["read"]), quota=Quota(requests_per_s=0.01)
        )
        with secured.client(token) as http:
            http.get("/v1/tasks")
            yield "quota-exceeded", http.get("/v1/tasks")
        keys.revoke(key.id)


def test_every_setting_is_documented() -> None:
    names = {row[0].strip("`") for row in _table("Settings")}

    assert names == {PREFIX + name.upper() for name in Settings.model_fields}


def test_the_json_examples_of_the_documents_are_json() -> None:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)
    ]

    assert blocks
    for block in blocks:
        json.loads(block)
