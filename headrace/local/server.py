"""A server of this machine: its address, its process, and what both of them share."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from headrace.local.ports import require_free
from headrace.local.process import ServiceProcess


class EmbeddedServer(ABC):
    """A server on 127.0.0.1 with its files in `folder`; a context manager.

    `port` 0 takes a free one, which a restart keeps. `name` is that of the process and its log, `service` the name in
    errors of a port that is taken, and `flag` says there how to choose another one.
    """

    def __init__(
        self, name: str, folder: str | Path, port: int, *, service: str, flag: str, orphan_s: float | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        self.port = port
        self._wanted_port = port
        self._service = service
        self._flag = flag
        self._process = ServiceProcess(name, self.folder, orphan_s=orphan_s)

    @abstractmethod
    def start(self) -> Self:
        """Start the server, and return when it answers.

        Raises:
            PortBusyError: the wanted port is taken.
            ServiceError: there is no binary, or the server ended at once (the message has its log's tail).
        """

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process.alive

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of a server that has ended by itself, negative for a signal; None: it runs, or was stopped."""
        return self._process.exit_code

    def stop(self) -> None:
        """Stop the server."""
        self._process.stop()

    def kill(self) -> None:
        """End the server as a power cut would; `start` starts it again."""
        self._process.kill()

    def check(self) -> None:
        """Return if the server runs.

        Raises:
            ServiceError: it died; with the tail of its log.
        """
        self._process.check()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _check_port(self) -> None:
        if self._wanted_port:
            require_free(self.port, service=self._service, flag=self._flag)
