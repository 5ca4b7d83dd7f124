"""OpenTelemetry traces: one span per request, with one child span per stage.

Tracing is off unless the standard variables name a destination: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``), or ``OTEL_TRACES_EXPORTER=otlp`` or ``console``. Sampling,
headers, the service name and all else are OpenTelemetry's own variables too.

OpenTelemetry's SDK configurator is not used. It exports nothing when only an endpoint is set, takes
``otlp`` for gRPC, does not say how to install a missing exporter, names the service
``unknown_service``, and sets up global metrics and logs as well.

Stage spans are created when the request ends, from its timings: the threads that decode and encode
for many requests at once know nothing of traces.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from prompt_serve import __version__
from prompt_serve.errors import ConfigInvalid, DependencyMissing
from prompt_serve.service.request_context import RequestContext
from prompt_serve.service.stage_timings import StageTimings

_SERVICE_NAME = "prompt-serve"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = ("otlp", "console")
_PARENT = "traceparent"
_propagator = TraceContextTextMapPropagator()


def requested_exporter(environment: Mapping[str, str]) -> str | None:
    """Return the exporter that the ``OTEL_*`` variables request: ``otlp``, ``console`` or None.

    Raises:
        ConfigInvalid: the exporter is unknown.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if name == "none":
        return None
    if name:
        if name not in _EXPORTERS:
            raise ConfigInvalid(
                f"OTEL_TRACES_EXPORTER={name!r}: expected one of {', '.join(_EXPORTERS)} or none."
            )
        return name
    return "otlp" if any(environment.get(endpoint) for endpoint in _ENDPOINTS) else None


def provider_from_environment(environment: Mapping[str, str] | None = None) -> TracerProvider:
    """Return the provider that the ``OTEL_*`` variables describe; by default one that does nothing.

    Raises:
        ConfigInvalid: the requested exporter is unknown.
        DependencyMissing: the requested exporter is not installed.
    """
    exporter = requested_exporter(os.environ if environment is None else environment)
    if exporter is None:
        return trace.NoOpTracerProvider()
    try:
        return _exporting_provider(exporter)
    except ImportError as error:
        raise DependencyMissing(
            "Exporting traces needs OpenTelemetry's OTLP exporter: "
            "pip install 'prompt-serve[otel]'. Or unset the OTEL_* variables.",
            package=error.name,
            extra="otel",
        ) from error


def _exporting_provider(name: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as ExportingProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
    )

    exporter: SpanExporter = ConsoleSpanExporter()
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    service_name = os.environ.get("OTEL_SERVICE_NAME", _SERVICE_NAME)
    resource = Resource.create({"service.name": service_name, "service.version": __version__})
    provider = ExportingProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracing:
    """Spans of requests.

    Args:
        provider: destination of the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("prompt_serve", __version__)
        self._is_off = isinstance(provider, trace.NoOpTracerProvider)

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Open the span of a request, a child of the caller's ``traceparent`` if it sent one."""
        if self._is_off and _PARENT not in headers:  # with one, the log still has its trace id
            yield trace.INVALID_SPAN
            return
        span = self._tracer.start_span(
            method, context=_propagator.extract(dict(headers)), kind=SpanKind.SERVER
        )
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        finally:
            span.end()

    def annotate(
        self, span: Span, method: str, route: str, status: int, context: RequestContext
    ) -> None:
        """Set the name and attributes of a finished request's span, and add its stages."""
        if not span.is_recording():
            return
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "prompt_serve.request_id": context.request_id,
                "prompt_serve.key_id": context.actor.key_id,
                "prompt_serve.images": context.images,
                "prompt_serve.tasks": context.tasks,
            }
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        self._add_stages(span, context.timings)

    def _add_stages(self, span: Span, timings: StageTimings) -> None:
        epoch_s = time.time() - time.monotonic()
        parent = trace.set_span_in_context(span)
        for stage, entry in timings.by_stage().items():
            started_ns = int((epoch_s + entry.started) * 1e9)
            child = self._tracer.start_span(stage, context=parent, start_time=started_ns)
            child.set_attribute("prompt_serve.busy_s", entry.busy_s)
            child.end(end_time=int((epoch_s + entry.ended) * 1e9))


def trace_id_of(span: Span) -> str | None:
    """Return the span's trace id in hexadecimal; None if the request is not traced."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
