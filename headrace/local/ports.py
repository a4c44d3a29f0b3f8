"""Ports on this machine: find a free one, refuse a taken one by name."""

import errno
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


def is_free(port: int) -> bool:
    """Whether `port` can be listened on."""
    return _refusal(port) is None


def require_free(port: int, *, service: str, flag: str) -> None:
    """Return if `port` can be listened on.

    Raises:
        PortBusyError: it is taken, or this user may not bind it. Names the port, who has it, the service and the flag.
    """
    exc = _refusal(port)
    if exc is not None:
        owner = f": {listener(port)} listens there" if exc.errno == errno.EADDRINUSE else ""
        raise PortBusyError(
            f"{service}: port {port} on {HOST} cannot be used ({exc.strerror}){owner}; "
            f"give another one with {flag}, or 0 for any free port"
        ) from exc


def require_address(host: str, port: int) -> None:
    """Return if `host`:`port` can be listened on; port 0, any free one, always can where the host is this machine's.

    Raises:
        PortBusyError: another process listens there, the host is not this machine's, or the port needs other rights.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise PortBusyError(
            f"serving: {host}:{port} cannot be used ({reason}); choose another with HEADRACE_HOST and HEADRACE_PORT"
        ) from exc


def _refusal(port: int) -> OSError | None:
    """Why `port` cannot be listened on; None where it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The servers set it as well: without it the closed connections of an earlier run would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            return exc
    return None


def listener(port: int) -> str:
    """Process that listens on `port` on this machine, as "process 123 (valkey-server)", as far as it can be told."""
    try:
        import psutil

        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        owners = [one.pid for one in listening if one.laddr.port == port and one.pid is not None]
        return f"process {owners[0]} ({psutil.Process(owners[0]).name()})" if owners else "a process of another user"
    except (ImportError, psutil.Error):  # other systems than Linux tell only root who listens
        return "another process"


def is_listening(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0
