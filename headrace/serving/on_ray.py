"""Runs the HTTP application on Ray Serve. The only module that imports ray.

There is one deployment and no chain of hops: HAProxy sends each request to a replica's own server, which calls the
application directly, bypassing Serve's wrapper (sockets/direct.py). Models never change through Serve's `user_config`,
which takes a replica out of routing and stops it when a push is bad; each replica follows the model directory itself.

    client -> HAProxy (host:port) -> replica: uvicorn -> application -> Ranker, Swap
                                  -> replica: ...

Serve's switches are environment variables that its actors read when they start, so `RayServe` sets them before Ray
starts. A replica builds its application by calling the factory; only the factory and the environment cross a process.

Costs measured on two cores: 11 s to start, 1 GB resident, 10 % of a core when idle, and 0.1 ms of CPU a request more
than the same application under uvicorn, all of it HAProxy's. Serve's wrapper would add 1 ms.
"""

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import structlog
from fastapi import FastAPI

from headrace.errors import ConfigError, ServiceError
from headrace.extras import require
from headrace.local.ports import free_port, require_address
from headrace.serving import haproxy
from headrace.serving.model_route import TIMEOUT_MS_MAX
from headrace.serving.report import METRICS_VARIABLE
from headrace.serving.sockets import direct

FOLDER_CHARS_MAX = 40  # Ray's Unix sockets add 65 characters to the folder's path, and Linux allows 107
OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum; unused
REPLICA_PORTS = 64  # one for each replica; Serve does not reuse a freed port for 150 s
DRAIN_S = 1.0  # a stopping replica still answers for this long, until all proxies have dropped it
DRAIN_LOOK_S = 0.2  # between two checks of a stopping replica whether all requests are answered
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")
PROXY_START_S = 60.0  # by default Serve kills a proxy that is not up within 5 s, too short for a loaded machine
START_TRIES = 2  # Ray gives its node 30 s and HAProxy 60 s to start, which a loaded machine can exceed
REMOVE_TRIES = 15  # 0.2 s apart
REASON_LINES = 8  # last lines of a replica's traceback that go into an error message
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  # the name of a variable, not a token
QUIET = {"enable_access_log": False, "log_level": "WARNING"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Options of Ray Serve on one machine.

    Args:
        host, port: address of the HTTP service; HAProxy and the replicas listen on no other host.
        folder: Ray's temporary folder with its logs, at most 40 characters; None = a new one, which `stop` removes.
        replica_port_first: first of 64 ports for the replicas' own servers on `host`.
        proxy_ports: ports on `host` of HAProxy's statistics and metrics, and of the Python proxy that receives requests
            while HAProxy knows no replica; None: free ports. Two services on one machine must not share them.
        num_cpus: CPUs that Ray may assign; None = all.
        haproxy: use HAProxy where it works; False = Serve's Python proxy.
        env: more environment variables for all actors.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    folder: Path | None = None
    replica_port_first: int = 30_000
    proxy_ports: tuple[int, int, int] | None = None
    num_cpus: int | None = None
    haproxy: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


def build_app(
    factory: Callable[[], FastAPI],
    *,
    name: str = "headrace",
    num_replicas: int = 1,
    max_ongoing_requests: int = 4_096,
    num_cpus: float = 1.0,
    health_check_period_s: float = 10.0,
    metrics_folder: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Build a Serve application of one deployment, for `RayServe.deploy` or `serve run module:app`.

    Args:
        factory: a plain function, called once in each replica; it reads its settings there, from the environment.
        num_replicas: number of processes, each with the model in memory.
        max_ongoing_requests: limit of one replica; above the application's `max_in_flight`, which answers 429 first.
        num_cpus: CPUs reserved for a replica; torch, numba and Polars get as many threads, at least one.
        metrics_folder: folder of the replicas' metrics, such as `RayServe.metrics_folder`, so that each replica answers
            /metrics for all; None: each answers for itself.
        env: environment variables of the replicas, in addition to those they inherit.
    """
    require("ray")
    from ray import serve

    threads = str(max(int(num_cpus), 1))
    env_vars = {**dict.fromkeys(THREAD_VARIABLES, threads), direct.HOOK_VARIABLE: direct.HOOK, **(env or {})}
    if metrics_folder is not None:
        env_vars[METRICS_VARIABLE] = str(metrics_folder)

    def application() -> direct.ByServe:
        return direct.served(factory())

    deployment = serve.deployment(
        serve.ingress(application)(),
        name=name,
        num_replicas=num_replicas,
        max_ongoing_requests=max_ongoing_requests,
        health_check_period_s=health_check_period_s,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        graceful_shutdown_timeout_s=TIMEOUT_MS_MAX / 1_000 + DRAIN_S,  # the longest deadline of a request
        ray_actor_options={"num_cpus": num_cpus, "runtime_env": {"env_vars": env_vars}},
        logging_config=QUIET,
    )
    return deployment.bind()


class RayServe:
    """Ray and Ray Serve on this machine; a context manager that starts and stops them.

    Raises:
        ConfigError: the folder's path is too long, or Ray already runs in this process.
        PortBusyError: the port is taken.
        ServiceError: Ray or Serve does not start; the message names the folder of the logs.
    """

    def __init__(self, options: RayOptions) -> None:
        self.options = options
        self.url = f"http://{options.host}:{options.port}"
        self.haproxy = False  # whether HAProxy is in use; known once started
        self._temporary_folders: list[Path] = []
        self._variables_before: dict[str, str | None] = {}
        self._folder = options.folder
        self._deployed: list[str] = []  # names of applications
        self.metrics_folder: Path | None = None  # for the replicas' metrics; set by start, removed by stop

    def start(self) -> Self:
        """Start Ray and Serve, and return when HTTP is served."""
        require("ray")
        import ray

        options = self.options
        if ray.is_initialized():
            raise ConfigError("Ray runs in this process already: stop it first")
        require_address(options.host, options.port)
        folder = self._folder = options.folder or self._temporary("hr-ray-")
        self.metrics_folder = self._temporary("hr-metrics-")
        if len(str(folder)) > FOLDER_CHARS_MAX:
            raise ConfigError(
                f"Ray's folder {folder} has more than {FOLDER_CHARS_MAX} characters: choose a shorter path"
            )
        variables = self._environment()
        self._variables_before = {name: os.environ.get(name) for name in variables if name != TOKEN_VARIABLE}
        os.environ.update(variables)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its lines repeat ours
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._start_node(folder)
                self._start_proxies()
                break
            except Exception as exc:
                logs = folder / "session_latest" / "logs"
                if tries_left:
                    log.warning("ray_serve_start_retried", reason=str(exc), logs=str(logs))
                    self._shut_down()
                    continue
                self._keep_logs()
                self.stop()
                raise ServiceError(f"Ray Serve does not start: {exc}; logs: {logs}") from exc
        log.info("ray_serve_started", url=self.url, haproxy=self.haproxy, folder=str(folder))
        return self

    def _start_node(self, folder: Path) -> None:
        import ray

        options = self.options
        ray.init(
            num_cpus=options.num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(folder),
            _node_ip_address=options.host if options.host.startswith("127.") else None,
        )

    def _start_proxies(self) -> None:
        from ray import serve

        serve.start(
            http_options={"host": self.options.host, "port": self.options.port},
            proxy_location="HeadOnly",
            logging_config=QUIET,
        )

    def deploy(self, app: Any, *, name: str = "headrace") -> str:
        """Deploy `app` (from `build_app`) at `/`, and return the URL when its replicas are ready.

        Raises:
            ServiceError: a replica's factory failed.
        """
        from ray import serve

        self._deployed = list(dict.fromkeys([*self._deployed, name]))
        try:
            serve.run(app, name=name, route_prefix="/")
        except RuntimeError as exc:
            self._keep_logs()
            logs = f"{self._folder}/session_latest/logs/serve"
            raise ServiceError(f"application {name} does not start: {_reason(name) or exc}; logs: {logs}") from exc
        return self.url

    def stop(self) -> None:
        """Drain and stop replicas, Serve and Ray, and remove the temporary folders. Does nothing if not started."""
        self._shut_down()
        for name, value in self._variables_before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._variables_before.clear()
        for folder in self._temporary_folders:
            _remove(folder)
        self._temporary_folders.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _shut_down(self) -> None:
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        try:
            for name in self._deployed:  # `shutdown` alone would end HAProxy first, and the requests it carries
                serve.delete(name)
            serve.shutdown()
        except Exception:
            log.exception("ray_serve_shutdown_failed")  # Ray stops next, and with it all that is left
        ray.shutdown()

    def _keep_logs(self) -> None:
        self._temporary_folders = [folder for folder in self._temporary_folders if folder != self._folder]

    def _temporary(self, prefix: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._temporary_folders.append(folder)
        return folder

    def _environment(self) -> dict[str, str]:
        options = self.options
        last = options.replica_port_first + REPLICA_PORTS
        variables = {
            # Ray's own ports listen on all interfaces, and their clients can run code; with a token set, Ray requires
            # it. Ray reads the mode at import and the token once per process, so `stop` leaves both in place.
            TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(options.replica_port_first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PROXY_START_S),
        }
        if options.haproxy:
            variables |= self._haproxy_environment()
        return {**variables, **options.env}

    def _haproxy_environment(self) -> dict[str, str]:
        try:
            binary = haproxy.find_binary()
        except ServiceError as exc:
            fallback = "Serve's Python proxy, about a fifth of the requests/s"
            log.warning("haproxy_unusable", reason=str(exc), fallback=fallback)
            return {}
        self.haproxy = True
        folder = self._temporary("hr-")  # a short name: HAProxy's sockets add 88 characters to it
        ports = self.options.proxy_ports or (free_port(), free_port(), free_port())
        return haproxy.environment(binary, folder, self.options.host, ports)


def _reason(name: str) -> str:
    """Return the last lines of the controller's messages about an application's deployments."""
    from ray import serve

    application = serve.status().applications.get(name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    return "\n".join("\n".join(message.strip().splitlines()[-REASON_LINES:]) for message in messages if message)


def _remove(folder: Path) -> None:
    # Ray's processes may write to their logs for a moment after Ray has reported that it is down.
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)
    log.warning("folder_not_removed", folder=str(folder))
