"""Base class of the embedded Redis and broker: address and process of a local server."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from headrace.local.ports import require_free
from headrace.local.process import ServiceProcess


class EmbeddedServer(ABC):
    """A server on 127.0.0.1 with its files in `folder`; a context manager.

    `port` 0 takes a free port, which a restart keeps. `name` is the name of the process and its log. `service` and
    `flag` are shown in errors about a busy port: the service's name, and the flag for choosing another port.
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
        """Start the server, and wait until it answers.

        Raises:
            PortBusyError: the requested port is in use.
            ServiceError: there is no binary, or the server ended at once (the message has the end of its log).
        """

    @property
    def alive(self) -> bool:
        """Whether the server's process is running."""
        return self._process.alive

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of a server that has ended by itself, negative for a signal; None if it runs or was stopped."""
        return self._process.exit_code

    def stop(self) -> None:
        """Stop the server."""
        self._process.stop()

    def kill(self) -> None:
        """Kill the server, as a power cut would; `start` starts it again."""
        self._process.kill()

    def check(self) -> None:
        """Check that the server is running.

        Raises:
            ServiceError: it has ended; the message has the end of its log.
        """
        self._process.check()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _check_port(self) -> None:
        if self._wanted_port:
            require_free(self.port, service=self._service, flag=self._flag)
