"""Reports of a started service: metrics, log lines, headers, spans."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace import TracerProvider as AnyProvider
from starlette.types import Receive, Scope, Send

from prompt_serve.errors import ConfigInvalid
from prompt_serve.service import request_context
from prompt_serve.service.observability.request_log import RequestLogMiddleware
from prompt_serve.service.observability.tracing import (
    Tracing,
    provider_from_environment,
    requested_exporter,
)
from prompt_serve.service.problems import problem_of, problem_response
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService

ROOT = Path(__file__).parents[3]
PNG = {"content-type": "image/png"}
MAX_SERIES = 500


def series(text: str) -> dict[str, float]:
    """Parse all samples of an exposition, by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@pytest.fixture
def admin(secured: SecuredService) -> Any:
    with secured.client(secured.admin) as http:
        yield http


@pytest.fixture
def task(admin: httpx.Client) -> Any:
    body = {"name": "observed", "class_names": ["a", "b", "c"]}
    assert admin.post("/v1/tasks", json=body).status_code in (200, 201)
    yield "observed"
    admin.delete("/v1/tasks/observed")


def classify(http: httpx.Client, task: str, **headers: str) -> httpx.Response:
    return http.post(f"/v1/classify?task={task}", content=picture(1), headers=PNG | headers)


def scrape(http: httpx.Client) -> dict[str, float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return series(answer.text)


def test_metrics_count_images_batches_uploads_and_the_cache(admin: httpx.Client, task: str) -> None:
    before = scrape(admin)
    for _ in range(3):
        assert classify(admin, task).status_code == 200
    assert admin.post(f"/v1/classify?task={task}", content=b"no", headers=PNG).status_code == 422
    assert admin.put("/v1/tasks/observed", content=b"no prompt").status_code == 422
    after = scrape(admin)

    def risen(name: str) -> float:
        return after[f"prompt_serve_{name}"] - before.get(f"prompt_serve_{name}", 0.0)

    route = 'method="POST",route="/v1/classify"'
    assert risen(f'requests_total{{{route},status="200"}}') == 3
    assert risen(f'requests_total{{{route},status="422"}}') == 1
    assert risen('request_duration_seconds_count{kind="classify"}') == 4
    assert risen('images_total{result="answered"}') >= 3  # the probe of /readyz counts too
    assert risen('images_total{result="refused"}') == 1
    assert risen("batch_images_sum") == risen('images_total{result="answered"}')
    assert risen("decode_seconds_count") >= 4
    assert risen("inference_seconds_count") == risen("batch_images_count") >= 3
    assert risen("score_seconds_count") == 3
    assert risen('class_feature_lookups_total{result="hit"}') == 4
    assert risen('uploads_total{result="refused"}') == 1
    assert after["prompt_serve_queue_images"] == after["prompt_serve_queue_bytes"] == 0
    assert after["prompt_serve_class_feature_bytes"] > 0
    assert after["prompt_serve_text_encoding_seconds_count"] >= 1
    assert after["prompt_serve_tasks"] >= 1
    assert after["prompt_serve_registry_revision"] >= 1
    assert any('provider="CPUExecutionProvider"' in name for name in after)


@pytest.mark.parametrize(
    ("n_names", "n_paths"), [(100, 50), pytest.param(10_000, 1_000, marks=pytest.mark.long)]
)
def test_task_names_and_a_scanner_add_no_series(
    secured: SecuredService, n_names: int, n_paths: int
) -> None:
    with secured.client(secured.admin) as http:
        _request(http, ["first"], ["first"])
        scrape(http)
        before = scrape(http)
        _request(http, [f"name-{i}" for i in range(n_names)], [f"{i}.php" for i in range(n_paths)])
        after = scrape(http)

    assert set(after) == set(before)
    assert len(after) < MAX_SERIES
    assert not any("name-" in name or ".php" in name for name in after)


def _request(http: httpx.Client, names: list[str], paths: list[str]) -> None:
    for name in names:
        assert http.get(f"/v1/tasks/{name}").status_code == 404
    for path in paths:
        for prefix in ("/", "/v1/"):
            assert http.get(prefix + path).status_code == 404
        assert http.patch("/v1/tasks", params={"of": path}).status_code == 405


def test_an_answer_has_its_request_id_and_stage_times(admin: httpx.Client, task: str) -> None:
    answer = classify(admin, task, **{"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    spent = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert {"registry", "decode", "queue", "inference", "score", "total"} <= set(spent)
    one_after_the_other = sum(float(v) for name, v in spent.items() if name != "total")
    # One image: its stages do not overlap. Rounded to 0.01 ms each.
    assert 0 < one_after_the_other <= float(spent["total"]) + 0.1

    for insane in ("a b", "x" * 129, "line\tbreak", "<script>"):
        made = admin.get("/v1/info", headers={"x-request-id": insane}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}", made)


def test_every_problem_document_carries_the_request_id(secured: SecuredService) -> None:
    with secured.client(secured.admin, **{"x-request-id": "of-a-problem"}) as http:
        answers = [
            http.get("/v1/tasks/none"),
            http.get("/v1/nonsense"),
            http.get("/v1/tasks?limit=x"),
            http.post("/v1/classify", content=b"?", headers={"content-type": "text/plain"}),
        ]
    with secured.client(None, **{"x-request-id": "of-a-problem"}) as http:
        answers.append(http.get("/v1/info"))
    for answer in answers:
        assert answer.status_code >= 400
        assert answer.json()["request_id"] == "of-a-problem", answer.text
        assert answer.headers["x-request-id"] == "of-a-problem"


def lines_of(secured: SecuredService, request_id: str) -> list[dict[str, Any]]:
    """Wait for the log lines of a request; they are written after the answer."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        found = [
            json.loads(line)
            for line in secured.served.log.read_text().splitlines()
            if request_id in line
        ]
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no line about {request_id} in {secured.served.log.read_text()[-3000:]}")


def test_a_log_line_tells_who_asked_what_and_how_long_it_took(
    secured: SecuredService, admin: httpx.Client, task: str
) -> None:
    classify(admin, task, **{"x-request-id": "logged-request"})
    [line] = lines_of(secured, "logged-request")
    assert line["logger"] == "prompt_serve.request"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/classify", 200)
    assert (line["images"], line["tasks"], line["key"]) == (1, 1, "admin")
    assert line["key_id"] in secured.admin
    assert line["duration_ms"] > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/tasks/x"),
        ("POST", "/v1/tasks"),
        ("PUT", "/v1/tasks/x/tags"),
        ("GET", "/v1/audit"),
        ("GET", "/v1/registry/export"),
    ],
)
def test_a_log_line_names_the_key_whose_role_does_not_suffice(
    secured: SecuredService, method: str, path: str
) -> None:
    request_id = f"refused-{method}{path}"
    with secured.client(secured.infer) as client:
        answer = client.request(method, path, headers={"x-request-id": request_id})

    assert answer.status_code == 403
    [line] = lines_of(secured, request_id)
    assert line["key"] == "infer"
    assert line["key_id"] in secured.infer


def test_no_secret_is_ever_logged(secured: SecuredService) -> None:
    secret = secured.infer.split("_", 2)[2]
    for headers in ({"authorization": f"Bearer {secured.infer}"}, {"x-api-key": secured.infer}):
        for path in ("/v1/info", f"/v1/tasks/{secured.infer}", f"/v1/info?api_key={secured.infer}"):
            httpx.get(secured.served.url + path, headers=headers)
            httpx.get(secured.served.url + path, headers={"x-api-key": secured.infer + "x"})
    httpx.get(secured.served.url + "/v1/info", headers={"x-request-id": "after-the-secrets"})
    lines_of(secured, "after-the-secrets")
    log = secured.served.log.read_text()
    assert secret not in log
    assert secured.admin.split("_", 2)[2] not in log
    started = (line for line in log.splitlines() if line.startswith("{"))
    assert all(json.loads(line)["message"] for line in started)


async def _stages(scope: Scope, receive: Receive, send: Send) -> None:
    """App that records known stage times, and fails."""
    request = request_context.current_request()
    request.images, request.tasks = 2, 3
    now = time.monotonic()
    request.timings.add("decode", now - 0.5, now - 0.3)
    request.timings.add("decode", now - 0.4, now - 0.2)
    request.timings.add("inference", now - 0.2, now - 0.1)
    scope["route"] = type("Route", (), {"path_format": "/things/{name}"})()
    error = ConfigInvalid("no")
    await problem_response(problem_of(error))(scope, receive, send)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_a_request_is_a_span_below_its_callers_with_its_stages_below(
    exporter: InMemorySpanExporter,
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def ask() -> None:
        transport = httpx.ASGITransport(RequestLogMiddleware(_stages, Tracing(provider)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await http.get("/things/secret-name", headers={"traceparent": parent})

    asyncio.run(ask())
    *stages, request = exporter.get_finished_spans()
    assert request.name == "GET /things/{name}"
    assert request.kind is SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == parent.split("-")[1]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == parent.split("-")[2]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 500
    assert request.attributes["prompt_serve.images"] == 2
    assert not request.status.is_ok
    assert [stage.name for stage in stages] == ["decode", "inference"]
    for stage, seconds in zip(stages, (0.3, 0.1), strict=True):
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
        assert (stage.end_time or 0) - (stage.start_time or 0) == pytest.approx(
            seconds * 1e9, rel=1e-3
        )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, None),
    ],
)
def test_traces_are_off_unless_the_standard_variables_ask_for_them(
    environment: dict[str, str], expected: str | None
) -> None:
    assert requested_exporter(environment) == expected
    if expected is None:
        provider: AnyProvider = provider_from_environment(environment)
        assert not provider.get_tracer("x").start_span("y").is_recording()
    with pytest.raises(ConfigInvalid, match="expected one of otlp, console"):
        requested_exporter({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_every_query_of_the_dashboard_names_a_metric_that_exists(admin: httpx.Client) -> None:
    text = admin.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    files = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
    assert files
    for file in files:
        queries = re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', file.read_text())
        assert len(queries) >= 10
        json.loads(file.read_text())
        for query in queries:
            names = re.findall(r"\bprompt_serve_\w+", query)
            assert names, query
            for name in names:
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                assert name in known or base in known, (file.name, name)
