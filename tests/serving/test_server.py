"""The server around the application, in a process of its own: TLS, slow heads, malformed bytes, logs, draining."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import time

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives import serialization

from headrace.errors import ConfigError
from headrace.serving.server import serve_on_ray, serve_plain
from headrace.settings import Settings
from tests.forked import Forked
from tests.secure_broker import certificate
from tests.serving.stage import until

SERVER = """
import warnings
from fastapi import FastAPI, Request
from headrace.serving import server
from headrace.serving.sockets import connection, tls
from headrace.settings import load_settings
from headrace.telemetry import configure_logs

connection.HEAD_S = 1.0
tls.LOOK_S = 0.1
settings = load_settings()
configure_logs(as_json=settings.log_json)
app = FastAPI()
app.state.is_draining = False
app.get("/draining")(lambda: app.state.is_draining)

@app.post("/echo")
async def echo(request: Request):
    return (await request.body()).decode()

warnings.warn("a library's warning")
server.serve_plain(lambda: app, settings, say=lambda line: print(line, flush=True))
"""
HEAD = b"GET /draining HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def served(tmp_path):
    """(process, URL, TLS context, log) of a server with TLS and JSON logs."""
    cert, key = certificate(tmp_path)
    env = {
        "HEADRACE_PORT": "0",
        "HEADRACE_LOG_JSON": "true",
        "HEADRACE_DRAIN_S": "4",
        "HEADRACE_TLS_CERT": str(cert),
        "HEADRACE_TLS_KEY": str(key),
        "HEADRACE_PROJECT": str(tmp_path),
    }
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        Forked(["-c", SERVER], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        url = process.stdout.readline().split()[0]
        yield process, url, ssl.create_default_context(cafile=cert), log
        process.kill()


def answer_to(url, context, *parts, pause_s=0.0):
    """All that the server sends to these bytes until it closes the connection."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port), 10) as plain, context.wrap_socket(plain, server_hostname=host) as link:
        received = b""
        with contextlib.suppress(OSError):  # it may close while more is sent
            for part in parts:
                link.sendall(part)
                time.sleep(pause_s)
        with contextlib.suppress(ConnectionResetError):
            while more := link.recv(4_096):
                received += more
        return received


def echo(text, *headers):
    """A request that is answered by its body."""
    head = [b"POST /echo HTTP/1.1", b"host: x", b"content-length: %d" % len(text), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + text


def check_pipelines(url, context):
    """
    whole requests before malformed bytes: each its own answer | an offer of another protocol (as of Java's client):
    ignored, with its body and what follows read
    """
    bad_chunk = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    for tail in (b"\x00\xffnonsense\r\n\r\n", bad_chunk):
        for count in (0, 1, 3):
            sent = b"".join(echo(b"body %d" % i) for i in range(count))
            received = answer_to(url, context, sent + tail)
            assert received.count(b"HTTP/1.1 200 ") == count
            assert [received.count(b"body %d" % i) for i in range(count)] == [1] * count
            assert received.rindex(b"HTTP/1.1 400 ") > received.rfind(b"HTTP/1.1 200 ")
    offer = b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA"
    first, last = echo(b"body 0", *offer), echo(b"body 1", b"connection: close")
    websocket = b"connection: Upgrade", b"upgrade: websocket", b"sec-websocket-key: a", b"sec-websocket-version: 13"
    for parts in ([first + last], [first[:90], first[90:], last], [echo(b"body 0", *websocket), last]):
        received = answer_to(url, context, *parts, pause_s=0.05)
        assert received.count(b"HTTP/1.1 200 ") == 2
        assert b"body 0" in received
        assert b"body 1" in received


def check_long_heads(url, context):
    """4,000 headers of 40 kB, a body and blank lines before the next head: answered | 1 MB of headers: 431, closed."""
    many = [b"x-%d: y" % i for i in range(4_000)]
    assert answer_to(url, context, echo(b"body", *many, b"connection: close")).startswith(b"HTTP/1.1 200 ")
    parts = [echo(b"a" * 200_000), b"\r\n", b"\r\n", echo(b"body", b"connection: close")]
    assert answer_to(url, context, *parts, pause_s=0.1).count(b"HTTP/1.1 200 ") == 2
    for long in ([b"x-a: " + b"a" * 1_000_000], [b"x-%d: %s" % (i, b"y" * 50) for i in range(20_000)]):
        received = answer_to(url, context, b"GET /draining HTTP/1.1\r\n" + b"\r\n".join(long))
        assert received.startswith(b"HTTP/1.1 431 ")
        assert orjson.loads(received.partition(b"\r\n\r\n")[2])["error"] == "head_too_large"


def test_connections_logs_and_the_end_of_a_server(served):
    """
    malformed -> 400 | a head that drips, or none, or blank lines after an answer -> 408, closed | SIGTERM -> not ready
    for a while, still answering | then it ends, and all it wrote was JSON
    """
    process, url, context, log = served
    assert url.startswith("https://")
    with httpx.Client(base_url=url, verify=context) as client:
        assert client.get("/draining").json() is False
        assert "server" not in client.get("/draining").headers

        malformed = answer_to(url, context, b"\x00\xffnonsense\r\n\r\n")
        assert malformed.startswith(b"HTTP/1.1 400 ")
        assert orjson.loads(malformed.partition(b"\r\n\r\n")[2])["error"] == "bad_request"
        drips = [HEAD, *(b"x-a: b\r\n" for _ in range(8))]
        assert answer_to(url, context, *drips, pause_s=0.2).startswith(b"HTTP/1.1 408 ")
        assert answer_to(url, context).startswith(b"HTTP/1.1 408 ")
        after = answer_to(url, context, HEAD + b"\r\n", *[b"\r\n"] * 8, pause_s=0.2)
        assert after.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in after

        check_pipelines(url, context)
        check_long_heads(url, context)

        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while client.get("/draining").json() is False:
            assert time.monotonic() < deadline
    assert process.wait(20) in {0, -signal.SIGTERM}  # uvicorn raises the signal again once it has ended
    lines = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    assert any("a library's warning" in line["event"] for line in lines)
    assert any(line["event"] == "Invalid HTTP request received." for line in lines)


def test_a_certificate_that_is_replaced_is_presented(served, tmp_path):
    """New connections get it within a look | a broken file, or another certificate's key: the one before it stays."""
    _process, url, _context, log = served
    address = httpx.URL(url).host, httpx.URL(url).port
    presented = lambda: ssl.get_server_certificate(address).strip()  # noqa: E731
    cert, key = tmp_path / "gate.pem", tmp_path / "gate.key"
    first = cert.read_text().strip()
    assert presented() == first
    (tmp_path / "new").mkdir()
    new_cert, new_key = certificate(tmp_path / "new")
    new_cert.replace(cert)
    second = cert.read_text().strip()
    until(lambda: b"tls_files_not_read_again" in log.read_bytes())  # the key is not there yet
    assert presented() == first
    new_key.replace(key)
    until(lambda: presented() == second)
    (tmp_path / "nonsense").write_text("nonsense")
    (tmp_path / "nonsense").replace(cert)  # at once: a look between the file's end and its text would be a third line
    until(lambda: log.read_bytes().count(b"tls_files_not_read_again") == 2)
    cert.unlink()
    assert presented() == second
    with httpx.Client(base_url=url, verify=False) as client:
        assert client.get("/draining").json() is False


def test_files_of_tls_that_cannot_be_used_are_refused_at_the_start(tmp_path):
    """Before the application is made: no PEM, another certificate's key, a key with a password."""
    cert, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other_key = certificate(tmp_path / "other")
    locked, text = tmp_path / "locked.key", tmp_path / "text"
    text.write_text("no PEM")
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"secret")
    pkcs8 = serialization.PrivateFormat.PKCS8
    locked.write_bytes(plain.private_bytes(serialization.Encoding.PEM, pkcs8, password))
    for files in ((text, key), (cert, text), (cert, other_key), (cert, locked)):
        with pytest.raises(ConfigError, match=r"cannot be used .*: TLS needs the files"):
            serve_plain(dict, Settings(tls_cert=files[0], tls_key=files[1]), say=print)


def test_tls_needs_both_files_and_no_ray(tmp_path):
    """Named before anything is started."""
    cert, key = certificate(tmp_path)
    for settings in (Settings(tls_cert=cert), Settings(tls_key=key), Settings(tls_cert=cert, tls_key=tmp_path / "no")):
        with pytest.raises(ConfigError, match="HEADRACE_TLS_(CERT|KEY): .*TLS needs the files"):
            serve_plain(dict, settings, say=print)
    with pytest.raises(ConfigError, match="--plain"):
        serve_on_ray(dict, Settings(tls_cert=cert, tls_key=key), tmp_path, say=print)
