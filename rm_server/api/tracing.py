"""Spans for OpenTelemetry: one for each call, below it its stages. Imported only where tracing is on."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version as package_version
from itertools import pairwise

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rm_server.api.calls import Call
from rm_server.config import TracingSettings
from rm_server.metrics import OK
from rm_server.scoring.scorer import Timings

EXPORT_TIMEOUT_S = 5.0
"""For one parcel of spans; the end of the server waits no longer for the last one."""

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Spans are made when a call has ended, from the times that are measured anyway, and sent by a thread.

    A call that brings a trace context (`traceparent`, in gRPC's metadata or HTTP's headers) goes on with that trace
    and keeps to what was decided there; of the others, ``sample_share`` are traced.
    """

    def __init__(self, settings: TracingSettings) -> None:
        exporter = OTLPSpanExporter(settings.endpoint, timeout=EXPORT_TIMEOUT_S)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_share)),
            # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME add to these.
            resource=Resource.create({"service.name": "rm-server", "service.version": package_version("rm-service")}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rm_server")

    def call_ended(self, call: Call, reason: str, start_ns: int, end_ns: int) -> None:
        """``reason``: ``ok`` or the error's. Times are since 1970."""
        parent = _propagator.extract(dict(call.trace_context)) if call.trace_context else None
        span = self._tracer.start_span(
            call.method, parent, SpanKind.SERVER, attributes=_attributes(call, reason), start_time=start_ns
        )
        if not span.is_recording():
            return
        if reason != OK:
            span.set_status(Status(StatusCode.ERROR, reason))
        if call.timings is not None:
            below = set_span_in_context(span)
            for name, stage_start_ns, stage_end_ns in stages(call.timings, start_ns):
                self._tracer.start_span(name, below, start_time=stage_start_ns).end(stage_end_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Sends what is left. Blocks."""
        self._provider.shutdown()


def stages(timings: Timings, start_ns: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each stage, one after the other. Of a call of several batches, the longest of each."""
    moments_s = (
        0.0,
        timings.tokenize_s,
        timings.tokenize_s + timings.queue_s,
        timings.tokenize_s + timings.queue_s + timings.compute_s,
    )
    moments_ns = [start_ns + int(moment_s * 1e9) for moment_s in moments_s]
    for name, (stage_start_ns, stage_end_ns) in zip(
        ("tokenize", "queue", "compute"), pairwise(moments_ns), strict=True
    ):
        yield name, stage_start_ns, stage_end_ns


def _attributes(call: Call, reason: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "rpc.method": call.method,
        "rm.reason": reason,
        "rm.request_id": call.request_id,
    }
    if call.run:
        attributes["rm.run"] = call.run
    if call.key is not None:
        attributes["rm.model"], attributes["rm.version"] = call.key
    return attributes
