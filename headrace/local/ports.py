"""Ports on this machine: find a free one, refuse a taken one by name."""

import socket

from headrace.errors import PortBusyError

HOST = "127.0.0.1"
"""Embedded services listen here and nowhere else."""


def free_port() -> int:
    """A TCP port that nothing listened on a moment ago.

    Another process may take it before the caller does; services started with `port=0` therefore try more than one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def require_free(port: int, *, service: str, flag: str) -> None:
    """Return if `port` can be listened on.

    Raises:
        PortBusyError: it is taken, or this user may not bind it. Names the port, the service and the flag.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The servers set it as well: without it the closed connections of an earlier run would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise PortBusyError(
                f"{service}: port {port} on {HOST} cannot be used ({exc.strerror}); "
                f"give another one with {flag}, or 0 for any free port"
            ) from exc


def is_listening(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0
