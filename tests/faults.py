"""Faults as objects: a wire to Redis that can be cut at a chosen moment, a disk without room."""

import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit


class Wire:
    """A TCP proxy before Redis.

    `lose_next_reply()`: the next request reaches Redis, its reply is dropped with the connection; with `holding` the
    next reply with these bytes. `cut()` refuses everything until `mend()`.
    """

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._lose_reply = self._then_cut = False
        self._is_cut, self._holding = False, b""
        self._links: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.lost_replies = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cut()
        _close(self._listener)  # which wakes the thread that accepts
        self._thread.join()

    def lose_next_reply(self, *, holding: bytes = b"", then_cut: bool = False) -> None:
        """Redis will do what it is asked, and nobody will hear of it; `then_cut` refuses what follows."""
        self._lose_reply, self._holding, self._then_cut = True, holding, then_cut

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._is_cut = True
        for link in self._links:
            _close(link)
        self._links.clear()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                _close(client)
                continue
            server = socket.create_connection(self._target)
            self._links += [client, server]
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pump_back, args=(server, client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        _close(sink)

    def _pump_back(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if self._lose_reply and self._holding in data:
                    self._lose_reply = False
                    self.lost_replies += 1
                    self._is_cut = self._then_cut
                    break
                sink.sendall(data)
        except OSError:
            pass
        _close(sink)
        _close(source)


@contextlib.contextmanager
def full_disk(room_bytes: int) -> Iterator[None]:
    """No file may grow beyond `room_bytes`, as on a disk with so much room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _close(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
