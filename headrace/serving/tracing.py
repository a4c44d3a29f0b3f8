"""OpenTelemetry traces of requests and their stages; the packages are loaded only if a URL is set.

    caller's span (header `traceparent`, W3C Trace Context)
      '-- POST /v1/rank                the request, from its headers to the response
            |-- wait                   in the queue of its lane
            |-- read                   features of the batch, from the store or from memory
            |-- score                  the forward pass of the batch
            '-- answer                 order, body and impression of the batch

Requests of one batch have equal times from `read` on, since the work is done once for all of them. A request with a
caller's trace is recorded if the caller's trace is; of the others, a configured share is recorded.
"""

import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from headrace.extras import require

if TYPE_CHECKING:  # an optional package
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

EXPORT_S = 2.0
"""Timeout of the collector in seconds."""
PREFIX = "/v1/"
"""Prefix of traced paths; probes and metrics are not traced."""
STAGES = ("wait", "read", "score", "answer")


class RequestTrace:
    """The span of one recorded request, to which the threads that work on the request add its stages."""

    __slots__ = ("_context", "_tracer", "submitted_ns")

    def __init__(self, tracer: "Tracer", context: "Context") -> None:
        self._tracer = tracer
        self._context = context
        self.submitted_ns = 0

    def stages(self, ends_ns: Sequence[int], requests: int) -> None:
        """Add the spans of STAGES, ending at `ends_ns` in ns since 1970; `requests` is the size of the batch."""
        begin_ns = self.submitted_ns
        for name, end_ns in zip(STAGES, ends_ns, strict=True):
            span = self._tracer.start_span(name, self._context, start_time=begin_ns)
            span.set_attribute("headrace.batch_requests", requests)
            span.end(end_ns)
            begin_ns = end_ns


REQUEST_TRACE: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)
"""Trace of the current request; None if it is not recorded."""


def submitted() -> RequestTrace | None:
    """The trace of the current request, with its wait starting now."""
    trace = REQUEST_TRACE.get()
    if trace is not None:
        trace.submitted_ns = time.time_ns()
    return trace


def trace_batch(traces: Iterable[RequestTrace | None], ends_ns: Sequence[int], requests: int) -> None:
    """Add the stages of a batch to the traces of its recorded requests."""
    for trace in traces:
        if trace is not None:
            trace.stages(ends_ns, requests)


class Tracing:
    """A recorder of requests, which sends them to a collector in a thread.

    Args:
        url: OTLP over HTTP, such as "http://127.0.0.1:4318/v1/traces".
        share: share of requests without a caller's trace to record, 0 to 1.

    Raises:
        MissingExtraError: the exporter is not installed.
    """

    def __init__(self, url: str, share: float) -> None:
        require("opentelemetry.exporter.otlp.proto.http")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource.create({"service.name": "headrace-serve"})
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_S)))
        self.tracer: Tracer = self._provider.get_tracer("headrace")

    def close(self) -> None:
        """Send pending spans, and end the thread."""
        self._provider.shutdown()


class TraceRequests:
    """ASGI middleware, the outermost, that opens a span for each request of the API."""

    def __init__(self, app: Any, *, tracing: Tracing) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracing.tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application inside the request's span."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        route = PREFIX + scope["path"].removeprefix(PREFIX).partition("/")[0]
        attributes = {"http.request.method": scope["method"], "http.route": route}
        caller = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(
            f"{scope['method']} {route}", caller, kind=SpanKind.SERVER, attributes=attributes
        ) as span:

            async def send_noted(message: Any) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                    for name, value in message.get("headers", ()):
                        if name == b"x-request-id":
                            span.set_attribute("headrace.request_id", value.decode("latin-1"))
                await send(message)

            trace = RequestTrace(self._tracer, set_span_in_context(span)) if span.is_recording() else None
            token = REQUEST_TRACE.set(trace)
            try:
                await self._app(scope, receive, send_noted)
            finally:
                REQUEST_TRACE.reset(token)
