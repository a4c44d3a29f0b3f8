"""Ports on this machine: find a free one, and report which process uses a busy one."""

import errno
import socket

from headrace.errors import PortBusyError

HOST = "127.0.0.1"
"""The only address on which embedded services listen."""


def free_port() -> int:
    """Find a free TCP port.

    Another process may take it before the caller does, so services started with `port=0` try several.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a service can listen on `port`."""
    return _refusal(port) is None


def require_free(port: int, *, service: str, flag: str) -> None:
    """Check that a service can listen on `port`.

    Raises:
        PortBusyError: the port is in use, or this user may not bind it. Names port, process, service and flag.
    """
    exc = _refusal(port)
    if exc is not None:
        owner = f": {listener(port)} listens there" if exc.errno == errno.EADDRINUSE else ""
        raise PortBusyError(
            f"{service}: port {port} on {HOST} cannot be used ({exc.strerror}){owner}; "
            f"give another one with {flag}, or 0 for any free port"
        ) from exc


def require_address(host: str, port: int) -> None:
    """Check that a service can listen on `host`:`port`; port 0 is any free port.

    Raises:
        PortBusyError: another process listens there, the host is not this machine's, or the port needs privileges.
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
    """The error of listening on `port`; None if it succeeds."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The servers set it as well; without it, closed connections of an earlier run would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            return exc
    return None


def listener(port: int) -> str:
    """Name the process that listens on `port`, such as "process 123 (valkey-server)", if it can be determined."""
    try:
        import psutil

        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        owners = [one.pid for one in listening if one.laddr.port == port and one.pid is not None]
        return f"process {owners[0]} ({psutil.Process(owners[0]).name()})" if owners else "a process of another user"
    except (ImportError, psutil.Error):  # on other systems than Linux, only root may list listeners
        return "another process"


def is_listening(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0
