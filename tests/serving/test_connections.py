"""HTTP/1.1 as bytes on a socket: long heads, refused bodies, trailers, pipelines, clients that do not read."""

import contextlib
import json
import re
import socket
import threading
import time

import pytest
from prometheus_client import REGISTRY

from headrace.serving import HttpLimits
from headrace.serving.sockets import connection
from headrace.serving.sockets.connection import HEAD_BYTES_MAX, GuardedConnection
from tests.serving.server import Server
from tests.serving.stage import ASK, Ranks, until

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
BODY = json.dumps(ASK).encode()


@pytest.fixture
def server(serve):
    app = serve(Ranks(), limits=HttpLimits(timeout_s=30.0, body_bytes_max=100_000)).app
    with Server(app, http=GuardedConnection, ws="none") as running:
        yield running


def statuses(received):
    """Statuses of the answers, and what the service says is wrong."""
    return [(status or error).decode() for status, error in re.findall(rb'HTTP/1.1 (\d+)|"error":"(\w+)"', received)]


def answers(server, *parts, pause_s=0.0):
    """What the server sends to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as link:
        for part in parts:
            link.sendall(part)
            time.sleep(pause_s)
        received = b""
        while more := link.recv(65_536):
            received += more
    return statuses(received)


def post(body=BODY, *headers, path=b"/v1/rank", length=None):
    size = len(body) if length is None else length
    head = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % size, *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def heads(size):
    """Heads of about `size` bytes: many headers, one long header, a long target; the last two bytes end them."""
    start = b"GET /healthz HTTP/1.1\r\nconnection: close\r\n"
    many = b"".join(b"x-%05d: %s\r\n" % (i, b"y" * 39) for i in range((size - len(start)) // 50))
    yield "431", start + many + b"\r\n"
    yield "431", start + b"x-a: " + b"a" * (size - len(start) - 9) + b"\r\n\r\n"
    yield "414", b"GET /healthz?" + b"a" * (size - 40) + start[12:] + b"\r\n"


def cuts(data):
    """The bytes in one piece, without their end first, and in pieces of 1,000."""
    yield [data]
    yield [data[:-2], data[-2:]]
    yield [data[i : i + 1_000] for i in range(0, len(data), 1_000)]


def test_the_limit_of_a_head_holds_however_its_bytes_are_cut(server, monkeypatch):
    """Below it: answered | beyond it: 431, or 414 for the target, and closed."""
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    for _, head in heads(HEAD_BYTES_MAX - 1_000):
        for parts in cuts(head):
            assert answers(server, *parts) == ["200"]
            assert answers(server, GET + parts[0], *parts[1:]) == ["200", "200"]
    for size in (HEAD_BYTES_MAX + 1_000, 2 * HEAD_BYTES_MAX, 3 * HEAD_BYTES_MAX):
        for status, head in heads(size):
            for parts in cuts(head):
                error = {"431": "head_too_large", "414": "target_too_long"}[status]
                assert answers(server, *parts) == [status, error]
                assert answers(server, GET + parts[0], *parts[1:]) == ["200", status, error]


def test_a_head_that_comes_byte_by_byte_has_the_same_limit(server, monkeypatch):
    """As above, with a limit that bytes reach in a test's time."""
    monkeypatch.setattr(connection, "HEAD_BYTES_MAX", 200)
    for length, expected in ((100, ["200"]), (300, ["431", "head_too_large"])):
        head = b"GET /healthz HTTP/1.1\r\nconnection: close\r\nx-a: %s\r\n\r\n" % (b"a" * length)
        parts = [head[i : i + 1] for i in range(len(head))]
        assert answers(server, *parts, pause_s=0.0005) == expected


def test_the_body_of_a_refused_request_is_dropped_and_the_connection_goes_on(server):
    """
    413 and 405 before the body is read, which comes in pieces of 100 kB | the next request is answered, nothing else
    """
    for path, refused in ((b"/v1/rank", ["413", "body_too_large"]), (b"/healthz", ["405", "no_such_route"])):
        length = 1_000_000 if refused[0] == "413" else 99_000
        pieces = [b"x" * (length // 10)] * 10
        assert answers(server, post(b"", path=path, length=length), *pieces, LAST, pause_s=0.01) == [*refused, "200"]
        assert answers(server, post(b"", path=path, length=length), *pieces[:-1], pieces[-1] + LAST) == [
            *refused,
            "200",
        ]


def test_the_body_of_a_refused_request_that_never_ends_is_cut_off(server, monkeypatch):
    """It drips on: closed without a second answer | it ends: the connection is kept for the next request."""
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    refused = post(b"", path=b"/healthz", length=1_000)
    with socket.create_connection(("127.0.0.1", server.port), 20) as link:
        link.sendall(refused)
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began_s < 4:
                link.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began_s < 4
        assert statuses(link.recv(65_536)) == ["405", "no_such_route"]
    with socket.create_connection(("127.0.0.1", server.port), 20) as link:
        link.sendall(refused)
        link.sendall(b"x" * 1_000)
        time.sleep(0.5)
        link.sendall(GET)
        until(lambda: b"200" in link.recv(65_536))


def test_a_client_that_waits_for_100_and_is_refused_may_not_send_the_next_request_as_the_body(server):
    """Refused before its body was asked for: the connection is closed, and said to be | asked for: 100, answered."""
    for path, length, refused in ((b"/v1/rank", 200_000, "413"), (b"/v2", 9, "404"), (b"/healthz", 9, "405")):
        with socket.create_connection(("127.0.0.1", server.port), 20) as link:
            link.sendall(post(b"", b"expect: 100-continue", path=path, length=length))
            received = b""
            while more := link.recv(65_536):
                received += more
        assert statuses(received)[0] == refused
        assert b"\r\nconnection: close\r\n" in received
    asked = [post(b"", b"expect: 100-continue", b"connection: close", length=len(BODY)), BODY]
    assert answers(server, *asked, pause_s=0.1) == ["100", "200"]


def test_trailers_are_no_headers(server):
    """A chunked body, then headers that would refuse it: in one piece with it, or later."""
    head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    trailers = b"x-request-timeout-ms: none\r\ncontent-encoding: gzip\r\n\r\n"
    assert answers(server, head + chunk + trailers) == ["200"]
    assert answers(server, head, chunk, trailers, pause_s=0.05) == ["200"]


def test_a_body_of_another_transfer_coding_is_refused_by_its_name(server):
    """It would be parsed as if it were plain; chunked alone is read."""
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    for coding, expected in ((b"gzip, chunked", ["422", "invalid_request"]), (b"Chunked", ["200"])):
        head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: %s\r\n\r\n" % coding
        assert answers(server, head + chunk) == expected


def test_a_flood_of_pipelined_requests_waits_in_the_socket(server):
    """Each answer would admit another piece of thousands: what is parsed stays bounded, and all are answered."""
    request, count = b"POST /v1/rank HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 12_000
    waiting, tail, answered = 0, b"", 0
    with socket.create_connection(("127.0.0.1", server.port), 20) as link:
        sender = threading.Thread(target=link.sendall, args=(request * count + LAST,))
        sender.start()
        while more := link.recv(65_536):
            answered += (tail + more).count(b"HTTP/1.1 ")
            tail = more[-8:]
            waiting = max([waiting, *(len(each.pipeline) for each in list(server.server_state.connections))])
        sender.join()
    assert answered == count + 1
    assert 100 < waiting < 7_000  # what one piece of 256 kB holds


def test_a_client_that_does_not_read_is_cut_off(server, monkeypatch):
    """It asks on and leaves the answers unread: the connection is cut, and counted."""
    monkeypatch.setattr(connection, "SEND_S", 0.5)
    stalled = "headrace_requests_shed_total", {"reason": "client_stalled"}
    before = REGISTRY.get_sample_value(*stalled) or 0.0
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.connect(("127.0.0.1", server.port))
        link.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while True:
                link.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
    until(lambda: (REGISTRY.get_sample_value(*stalled) or 0.0) > before)
    assert answers(server, LAST) == ["200"]


READ = (
    "v1/features/reader_activity/7",
    "v1/model",
    "v1/report",
    "healthz",
    "readyz",
    "metrics",
    "docs",
    "openapi.json",
)
PATHS = {"/v1/rank": {"POST"}, "/v1/score": {"POST"}, **{f"/{path}": {"GET", "HEAD"} for path in READ}}


@pytest.mark.parametrize("path", PATHS)
def test_allow_names_the_methods_that_are_answered(server, path):
    """On each path, each method: answered, or a 405 whose Allow is those that are; HEAD has GET's head, and no body."""
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        with socket.create_connection(("127.0.0.1", server.port), 20) as link:
            body = BODY if method == "POST" else b""
            head = f"{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            link.sendall(head.encode() + body)
            received = b""
            while more := link.recv(65_536):
                received += more
        head, _, content = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        allow = re.search(rb"\r\nallow: ([^\r]*)", head)
        assert (status == 405) == (method not in PATHS[path]), (method, status)
        assert (allow is None) == (status != 405)
        if allow is not None:
            assert allow[1].decode() == ", ".join(sorted(PATHS[path]))
        assert bool(content) == (method != "HEAD")
        if method == "HEAD" and status == 200:
            assert int(re.search(rb"content-length: (\d+)", head)[1]) > 0
