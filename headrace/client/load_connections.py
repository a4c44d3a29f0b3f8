"""Connections of the load generator: HTTP/1.1 with a known length, at a tenth of the CPU cost of a general client.

A general client costs a millisecond per request, and more with each connection, so it would measure itself. Idle
connections are reused newest first; one that the service has closed meanwhile is replaced.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 65_536
CLOSE_S = 1.0
"""Seconds in which a connection must close at the end."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connections:
    """Up to `connections_max` connections to the service at `url`; further requests wait. An async context manager.

    Args:
        headers: headers of every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str], connections_max: int) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        lines = [f"{name}: {value}" for name, value in {"host": parts.netloc.rpartition("@")[2], **headers}.items()]
        self._head = f"POST {parts.path.rstrip('/')}%s HTTP/1.1\r\n" + "\r\n".join(lines)
        self._free: list[Connection] = []
        self._slots = asyncio.Semaphore(connections_max)

    def request(self, path: str, body: bytes) -> bytes:
        """Build the bytes of a POST request."""
        head = f"{self._head % path}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers and body of the answer.

        Raises:
            OSError: the service cannot be reached, or hangs up.
            ValueError: the answer is not HTTP with a content length.
        """
        async with self._slots:
            while self._free:
                connection = self._free.pop()
                if not connection[0].at_eof():
                    break
                connection[1].close()
            else:
                connection = await asyncio.open_connection(
                    self._host,
                    self._port,
                    limit=HEAD_BYTES_MAX,
                    ssl=ssl.create_default_context() if self._is_tls else None,
                )
            try:
                connection[1].write(request)
                answer = await _read(connection[0])
            except asyncio.IncompleteReadError as exc:
                connection[1].close()
                raise ConnectionResetError("the service hung up") from exc
            except BaseException:  # also at a deadline: a late answer would be taken for the next one
                connection[1].close()
                raise
            if answer[1].get("connection", "").lower() == "close":
                connection[1].close()
            else:
                self._free.append(connection)
            return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for _, writer in self._free:
            writer.close()
        for _, writer in self._free:
            with contextlib.suppress(OSError, TimeoutError):  # of TLS, a service that hangs ends no connection
                await asyncio.wait_for(writer.wait_closed(), CLOSE_S)
        self._free.clear()


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    except asyncio.LimitOverrunError as exc:
        raise ValueError(f"a head of more than {HEAD_BYTES_MAX} bytes") from exc
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.partition(" ")[2][:3]), headers, await reader.readexactly(int(headers.get("content-length", "")))
