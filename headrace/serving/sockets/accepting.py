"""Accepts every connection that waits, each turn of the event loop.

libuv, and with it uvloop, accepts one connection a turn (since 1.45). A turn of a busy server takes 100 ms, so that the
last of 300 new connections would be accepted after 30 s, its request unread until then and its deadline not begun.

    listening socket   uvloop: one connection a turn
                       a copy of its descriptor, watched here: all others of that turn
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import structlog

ACCEPTED_MAX = 512
"""Connections accepted in one turn: each costs some 30 µs, and requests wait meanwhile."""
RETRY_S = 1.0
"""Seconds without accepting after the process ran out of descriptors or memory."""

log = structlog.get_logger(__name__)


class Acceptor:
    """Watches listening sockets beside the server that made them. For the event loop only.

    Args:
        listeners: listening sockets; they stay the server's, and are not closed here.
        protocol: makes the protocol of a connection.
        tls: context of TLS, or None.
    """

    def __init__(self, listeners: Sequence[Any], protocol: Callable[[], asyncio.Protocol], tls: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._tls = tls
        self._copies = [socket.socket(fileno=os.dup(listener.fileno())) for listener in listeners]
        self._opening: set[asyncio.Task[Any]] = set()
        for listener in self._copies:
            listener.setblocking(False)
            self._watch(listener)

    def close(self) -> None:
        """Accept no more."""
        for listener in self._copies:
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
                listener.close()

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # not closed while it was not watched
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Called by the event loop while connections wait."""
        for _ in range(ACCEPTED_MAX):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.warning("accept_failed", reason=str(exc), again_in_s=RETRY_S)
                self._loop.remove_reader(listener)
                self._loop.call_later(RETRY_S, self._watch, listener)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError as exc:  # of TLS too: what the client sent is no handshake, or it hung up
            log.debug("connection_failed", reason=str(exc))
            connection.close()
