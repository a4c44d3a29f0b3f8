"""Whether an address can be served on."""

import socket
from contextlib import closing

from headrace.errors import PortBusyError


def require_free(host: str, port: int) -> None:
    """Return if `host`:`port` can be listened on; port 0, any free one, always can where the host is this machine's.

    Raises:
        PortBusyError: another process listens there, the host is not this machine's, or the port needs other rights.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, number)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise PortBusyError(
            f"serving: {host}:{port} cannot be used ({reason}); choose another with HEADRACE_HOST and HEADRACE_PORT"
        ) from exc
