"""Traces of requests and their stages, as a collector of OTLP gets them."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import propagate, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from headrace import Client
from headrace.serving.tracing import STAGES, TraceRequests, Tracing
from tests.serving.stage import Ranks
from tests.serving.test_client import READER, THINGS, Running

ASK = {"entity": READER, "candidates": THINGS}
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(HTTPServer):
    """Takes spans over HTTP, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.spans += [span for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def traced(serve, collector, share=1.0):
    """A client of an application that is traced, and the function that sends all spans."""
    client, tracing = serve(Ranks()), Tracing(collector.url, share)
    client.app.add_middleware(TraceRequests, tracing=tracing)
    return client, tracing


def attributes_of(span) -> dict:
    values = {each.key: each.value for each in span.attributes}
    return {name: getattr(value, value.WhichOneof("value")) for name, value in values.items()}


def test_a_request_and_its_stages_are_beneath_the_callers_span(serve, collector):
    """
    caller |--------------------------------|
      request  |--------------------------|
        stages   |wait|read|score|answer|        one after the other
    """
    client, tracing = traced(serve, collector)
    assert client.post("/v1/rank", {**ASK, "request_id": "r1"}, headers={"traceparent": CALLER}).status_code == 200
    assert client.get("/healthz").status_code == 200
    tracing.close()
    by_name = {span.name: span for span in collector.spans}
    request = by_name.pop("POST /v1/rank")
    assert request.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert request.parent_span_id.hex() == "00f067aa0ba902b7"
    assert attributes_of(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/rank",
        "http.response.status_code": 200,
        "headrace.request_id": "r1",
    }
    assert set(by_name) == set(STAGES)
    stages = [by_name[name] for name in STAGES]
    assert {(stage.trace_id, stage.parent_span_id) for stage in stages} == {(request.trace_id, request.span_id)}
    moments = [request.start_time_unix_nano, stages[0].start_time_unix_nano]
    moments += [stage.end_time_unix_nano for stage in stages] + [request.end_time_unix_nano]
    assert moments == sorted(moments)
    assert [stage.start_time_unix_nano for stage in stages[1:]] == moments[2:5]
    assert attributes_of(stages[0]) == {"headrace.batch_requests": 1}


def test_the_caller_decides_and_of_others_a_share_is_recorded(serve, collector):
    """A share of 0 leaves those whose caller records; a caller that does not record is obeyed."""
    client, tracing = traced(serve, collector, share=0.0)
    client.post("/v1/score", ASK)
    client.post("/v1/score", ASK, headers={"traceparent": CALLER[:-2] + "00"})
    assert client.post("/v1/score", {}, headers={"traceparent": CALLER}).status_code == 422
    tracing.close()
    assert [span.name for span in collector.spans] == ["POST /v1/score"]
    assert attributes_of(collector.spans[0])["http.response.status_code"] == 422


def test_the_client_takes_its_callers_trace_along(serve, collector):
    """A program that uses OpenTelemetry has nothing to do for it."""
    assert propagate.get_global_textmap()
    served, tracing = traced(serve, collector)
    with (
        Running(served.app) as running,
        Client(running.url, timeout_s=30) as client,
        TracerProvider().get_tracer("caller").start_as_current_span("page"),
    ):
        mine = trace.get_current_span().get_span_context()
        client.features("thing_activity", "a")
    tracing.close()
    (span,) = collector.spans
    assert span.name == "GET /v1/features"
    assert (int(span.trace_id.hex(), 16), int(span.parent_span_id.hex(), 16)) == (mine.trace_id, mine.span_id)
