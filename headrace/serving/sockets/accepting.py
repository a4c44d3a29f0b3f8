"""Accepts all waiting connections in each turn of the event loop.

libuv (since 1.45), and so uvloop, accepts one connection per turn. A turn of a busy server takes 100 ms, so the last of
300 new connections would be accepted after 30 s; until then its request is unread and its deadline does not run.

    listening socket   uvloop: one connection per turn
                       a copy of its descriptor, watched here: all others of that turn
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from headrace.schemas.fault_log import FaultLog

ACCEPTED_MAX = 512
"""Most connections accepted in one turn: each takes some 30 µs, during which requests wait."""
RETRY_S = 1.0
"""Pause in seconds after the process ran out of descriptors or memory."""

log = structlog.get_logger(__name__)


class Acceptor:
    """Watches listening sockets in addition to the server that opened them. For the event loop only.

    Args:
        listeners: listening sockets; they belong to the server and are not closed here.
        protocol: creates the protocol of a connection.
        tls: TLS context, or None.
    """

    def __init__(self, listeners: Sequence[Any], protocol: Callable[[], asyncio.Protocol], tls: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._tls = tls
        self._copies: list[socket.socket] = []
        self._opening: set[asyncio.Task[Any]] = set()
        self._fault = FaultLog("accepting_again")
        for each in listeners:
            listener = socket.socket(fileno=os.dup(each.fileno()))
            self._copies.append(listener)
            listener.setblocking(False)
            self._watch(listener)

    def close(self) -> None:
        """Accept no more, and drop connections whose TLS is not agreed upon yet."""
        for task in self._opening if self._tls is not None else ():
            task.cancel()
        for listener in self._copies:
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
                listener.close()

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it may have been closed meanwhile
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Called by the event loop while connections wait."""
        for _ in range(ACCEPTED_MAX):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                self._fault.failed("accept_failed", str(exc), again_in_s=RETRY_S)
                self._loop.remove_reader(listener)
                self._loop.call_later(RETRY_S, self._watch, listener)
                return
            self._fault.succeeded()
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError as exc:  # also from TLS: the client sent no handshake, or hung up
            log.debug("connection_failed", reason=str(exc))
            connection.close()
        except BaseException:
            connection.close()
            raise
