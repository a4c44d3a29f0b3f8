"""`headrace load` against servers that answer anything, and with nothing to show."""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Iterator

import httpx
import polars as pl
import pytest

from headrace import AsyncClient
from headrace.client.load import SCHEMA, LoadRun, play, schedule_s
from headrace.client.load_connections import Connections
from headrace.client.load_plot import plot_load
from headrace.errors import ConfigError
from tests.serving.stage import Ranks
from tests.serving.test_client import READER, THINGS, Running


def answering(reply: bytes, *, first: bytes) -> Iterator[str]:
    """URL of a server that answers its first request by `first`, and all others by `reply`, then hangs up."""
    replies = [first]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # its end comes with the answer
                        _read_whole(connection)
                        connection.sendall(replies.pop() if replies else reply)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _read_whole(connection: socket.socket) -> None:
    """Read a request: what is unread when the connection is closed would reset it, answer or not."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65_536) or b"\r\n\r\n"
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]) and (more := connection.recv(65_536)):
        body += more


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"", "not_reached"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "unreadable"),
        (b"HTTP/1.1\r\n\r\n", "unreadable"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", "unreadable"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "unreadable"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "not_reached"),
        (b"HTTP/1.1 200 OK\r\nx-model-version: \xb2\r\ncontent-length: 2\r\n\r\n{}", "ok"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\noops!", "http_502"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\n[{}]", "http_500"),
    ],
    ids=range(9),
)
def test_load_counts_whatever_a_server_answers(serve, reply, outcome):
    """The first answer is a replica's own; what comes then is a word of the table, never an exception."""
    with Running(serve(Ranks()).app) as running:
        good = httpx.post(f"{running.url}/v1/rank", json={"entity": READER, "candidates": THINGS}, timeout=30)
    first = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(good.content)

    async def offer(url: str) -> dict:
        body = {"entity": READER, "candidates": THINGS}
        async with AsyncClient(url, timeout_s=5) as client, Connections(url, {}, 1) as connections:
            return (await play(client, connections, [body], rate_per_s=10, seconds=1, timeout_s=5)).summary()

    for url in answering(reply, first=first + good.content):
        figures = asyncio.run(offer(url))
    assert figures["failed"] == ("" if outcome == "ok" else f"{outcome} {figures['sent']}")


def test_a_picture_of_a_load_that_nothing_answered(tmp_path):
    """One rate, several, and one in which no request fell."""
    none, failed = (
        LoadRun(5.0, 1.0, pl.DataFrame(rows, schema=SCHEMA, orient="row"))
        for rows in ([], [(0.5, 0.1, 900.0, "deadline", None)])
    )
    for number, runs in enumerate(([none], [failed], [none, failed])):
        plot_load(runs, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_more_load_than_fits_is_refused_before_it_begins():
    """Its schedule alone would take all memory."""
    with pytest.raises(ConfigError, match=r"1e\+09 a second for 30 s are 3e\+10 requests, 5,000,000 at most"):
        schedule_s(1e9, 30.0, 0)
