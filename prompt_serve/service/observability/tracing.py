"""OpenTelemetry traces: one span a request, below it one for each stage it went through.

Off unless the standard variables say where to: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``..._TRACES_
ENDPOINT``), or ``OTEL_TRACES_EXPORTER=otlp`` or ``console``. Sampling, headers, the name of the
service and the rest are OpenTelemetry's own variables too.

The stages' spans are made when the request ends, from its timings: the threads that decode and
encode for many requests at once know nothing of traces.
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

_SERVICE_NAME = "prompt-serve"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = ("otlp", "console")
_propagator = TraceContextTextMapPropagator()


def exporter_wanted(environment: Mapping[str, str]) -> str | None:
    """The exporter that the ``OTEL_*`` variables ask for: ``otlp``, ``console`` or None.

    Raises:
        ConfigInvalid: it is one that we do not know.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if named == "none":
        return None
    if named:
        if named not in _EXPORTERS:
            raise ConfigInvalid(
                f"OTEL_TRACES_EXPORTER={named!r}: wanted one of {', '.join(_EXPORTERS)} or none."
            )
        return named
    return "otlp" if any(environment.get(name) for name in _ENDPOINTS) else None


def provider_from_environment(environment: Mapping[str, str] | None = None) -> TracerProvider:
    """Where spans go, by the ``OTEL_*`` variables; nowhere by default.

    Raises:
        ConfigInvalid, DependencyMissing: what they ask for is not to be had.
    """
    wanted = exporter_wanted(os.environ if environment is None else environment)
    if wanted is None:
        return trace.NoOpTracerProvider()
    try:
        return _exporting_provider(wanted)
    except ImportError as error:
        raise DependencyMissing(
            "Exporting traces needs OpenTelemetry's OTLP exporter: "
            "pip install 'prompt-serve[otel]'. Or unset the OTEL_* variables.",
            package=error.name,
            extra="otel",
        ) from error


def _exporting_provider(wanted: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as ExportingProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
    )

    exporter: SpanExporter = ConsoleSpanExporter()
    if wanted == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    name = os.environ.get("OTEL_SERVICE_NAME", _SERVICE_NAME)
    resource = Resource.create({"service.name": name, "service.version": __version__})
    provider = ExportingProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("prompt_serve", __version__)

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a request, below that of the caller's ``traceparent`` where there is one."""
        # The parent is named here because BentoML's own middleware, which records nothing, has
        # made itself the current span: below it nothing would be recorded.
        span = self._tracer.start_span(
            method, context=_propagator.extract(dict(headers)), kind=SpanKind.SERVER
        )
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        finally:
            span.end()

    def describe(
        self, span: Span, method: str, route: str, status: int, facts: RequestContext
    ) -> None:
        """Give the span what is known at the end, and its stages."""
        if not span.is_recording():
            return
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "prompt_serve.request_id": facts.request_id,
                "prompt_serve.key_id": facts.actor.key_id,
                "prompt_serve.images": facts.images,
                "prompt_serve.tasks": facts.tasks,
            }
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        self._add_stages(span, facts)

    def _add_stages(self, span: Span, facts: RequestContext) -> None:
        epoch_s = time.time() - time.monotonic()
        below = trace.set_span_in_context(span)
        for stage, spent in facts.timings.spent().items():
            started_ns = int((epoch_s + spent.started) * 1e9)
            child = self._tracer.start_span(stage, context=below, start_time=started_ns)
            child.set_attribute("prompt_serve.busy_s", spent.busy_s)
            child.end(end_time=int((epoch_s + spent.ended) * 1e9))


def trace_id_of(span: Span) -> str | None:
    """The id of the span's trace in hexadecimal digits; None where nothing is traced."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
