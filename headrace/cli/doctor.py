"""Check the installation and the services of a project. Each finding says how to fix a problem."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape

from headrace import project
from headrace.errors import (
    ConfigError,
    EvictionError,
    HeadraceError,
    MissingExtraError,
    PortBusyError,
    ServiceError,
    StoreError,
    StoreUnavailableError,
)
from headrace.extras import is_installed, require
from headrace.features.store.eviction import ADVICE, ALLOW, Eviction
from headrace.features.store.link import RedisLink
from headrace.local.ports import require_address
from headrace.settings import Settings
from headrace.telemetry import StatusBoard

PACKAGES = ("fastavro", "numba", "numpy", "polars", "pyarrow", "pydantic", "redis")
EXTRAS = {"flow": ("bytewax", "confluent_kafka"), "learn": ("river", "torch"), "serve": ("fastapi", "ray", "uvicorn")}
"""Packages whose versions are shown, by the extra that installs them."""
DISK_BYTES_MIN = 2_000_000_000  # a day's append-only file of the store, snapshots and logs
SILENT_S_MAX = 30.0  # a process without a status for this long is unhealthy
ANSWER_S_MAX = 3.0
ANSWER_CHARS_MAX = 300  # characters of a service's answer in a message

_OR_UP = ", or run the project's own Redis and broker: headrace up"

State = Literal["good", "note", "bad"]
_MARKS = {"good": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `advice` says what to do if `state` is not good."""

    name: str
    state: State
    found: str
    advice: str = ""

    def line(self) -> str:
        """The finding as a line for a terminal, with rich markup."""
        advice = f"\n     [dim]{escape(self.advice)}[/]" if self.advice else ""
        return f"{_MARKS[self.state]} {self.name}: {escape(self.found)}{advice}"


def examine(settings: Settings) -> list[Finding]:
    """Run all checks; problems are findings, never exceptions."""
    findings = [_python(), _packages(), *map(_extra, EXTRAS), _embedded(), _project(), _disk(settings.model_dir)]
    findings += [*_stack(settings), *_redis(settings), _broker(settings), _port(settings)]
    return findings


def check_health(role: str, settings: Settings) -> None:
    """Check that the process `role` of this installation is healthy.

    Raises:
        ServiceError: it does not answer, or has not posted its status for `SILENT_S_MAX` seconds.
        StoreUnavailableError: Redis does not answer.
        EvictionError: Redis may drop records of any view.
    """
    from headrace.clock import wall_us

    if role == "serve":
        import httpx

        url = f"{settings.serving_url}/readyz"
        try:
            answer = httpx.get(url, timeout=ANSWER_S_MAX)
        except httpx.HTTPError as exc:
            raise ServiceError(f"serve: {url} does not answer: {exc}") from exc
        if answer.is_error:
            raise ServiceError(f"serve: {url} answers {answer.status_code}: {answer.text[:ANSWER_CHARS_MAX]}")
        return
    with RedisLink(settings.redis_url, timeout_s=ANSWER_S_MAX) as link, link.errors("PING"):
        link.client.ping()
        eviction = _eviction(link, is_allowed=settings.allow_eviction)
    if eviction.state == "bad":
        raise EvictionError(f"{role}: Redis at {eviction.found}; {eviction.advice}, or allow it: {ALLOW}")
    with closing(StatusBoard(settings.redis_url, settings.namespace)) as board:
        shown = board.read()
    if role not in shown:
        raise ServiceError(f"{role}: shows no status; there are {', '.join(sorted(shown)) or 'none'}")
    silent_s = (wall_us() - shown[role]["posted_us"]) / 1e6
    if silent_s > SILENT_S_MAX:
        raise ServiceError(f"{role}: silent for {silent_s:.0f} s")


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "good", version)
    return Finding("python", "bad", version, "use Python 3.11 to 3.13")


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


def _extra(extra: str) -> Finding:
    """The packages of an extra; a missing one is only a note, since not every installation needs it."""
    lacking = [package for package in EXTRAS[extra] if not is_installed(package)]
    if lacking:
        return Finding(f"extra {extra}", "note", f"missing {', '.join(lacking)}", f"pip install 'headrace[{extra}]'")
    versions = (f"{package} {importlib.metadata.version(package)}" for package in EXTRAS[extra])
    return Finding(f"extra {extra}", "good", ", ".join(versions))


def _embedded() -> Finding:
    from headrace.local.broker import broker_binary
    from headrace.local.redis_server import redis_binary

    try:
        programs = f"{redis_binary()}, {broker_binary()}"
    except ServiceError as exc:
        return Finding("embedded services", "note", str(exc), "they are for `headrace up` and `headrace demo`")
    return Finding("embedded services", "good", programs)


def _stack(settings: Settings) -> Iterator[Finding]:
    """The services of `headrace up`, if the settings use their addresses."""
    stack = settings.stack
    if stack is None:
        return
    if not stack.is_running:
        yield Finding("headrace up", "note", f"its services do not run ({stack.folder})", "start them: headrace up")
        return
    description = (
        f"process {stack.pid} runs Redis at {stack.redis_url} and a broker at {stack.brokers} in {stack.folder}"
    )
    if not stack.restarts:
        yield Finding("headrace up", "good", description)
        return
    deaths = ", ".join(f"{name} {count}" for name, count in sorted(stack.restarts.items()))
    lost = "; what its topics held each time is lost" if "broker" in stack.restarts else ""
    description += f"; started again after a death: {deaths}{lost}"
    yield Finding("headrace up", "note", description, "see the logs there")


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
    try:
        existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(existing).free
    except OSError as exc:
        return Finding("disk", "bad", f"{folder}: {exc.strerror}", "set HEADRACE_MODEL_DIR to a folder of yours")
    free_space = f"{free / 1e9:.0f} GB free below {existing}"
    if not os.access(existing, os.W_OK):
        return Finding("disk", "bad", f"{existing} cannot be written to", "set HEADRACE_MODEL_DIR to a folder of yours")
    if free < DISK_BYTES_MIN:
        advice = f"free at least {DISK_BYTES_MIN / 1e9:.0f} GB, or set HEADRACE_MODEL_DIR"
        return Finding("disk", "bad", free_space, advice)
    return Finding("disk", "good", free_space)


def _redis(settings: Settings) -> Iterator[Finding]:
    try:
        with RedisLink(settings.redis_url, timeout_s=ANSWER_S_MAX) as link:
            yield Finding("redis", "good", _server(link))
            yield _eviction(link, is_allowed=settings.allow_eviction)
    except (StoreUnavailableError, ServiceError) as exc:
        yield Finding("redis", "note", str(exc), f"set HEADRACE_REDIS_URL{_OR_UP}")
    except StoreError as exc:
        yield Finding("redis", "bad", str(exc), "set HEADRACE_REDIS_URL")


def _server(link: RedisLink) -> str:
    with link.errors("PING"):
        link.client.ping()
    try:
        server, persistence = (next(iter(link.info(section).values())) for section in ("server", "persistence"))
    except StoreUnavailableError:
        raise
    except StoreError:
        return f"{link.shown_url} answers; its user may not ask for more (+info)"
    aof = "on" if persistence.get("aof_enabled") else "off"
    return f"{link.shown_url}, version {server.get('redis_version', 'unknown')}, AOF {aof}"


def _eviction(link: RedisLink, *, is_allowed: bool) -> Finding:
    """Whether Redis drops records when its memory is full, and whether it has done so."""
    try:
        dropped = sum(int(info.get("evicted_keys", 0)) for info in link.info("stats").values())
        state, description = _eviction_risk(link)
    except StoreUnavailableError:
        raise
    except StoreError:
        dropped, (state, description) = 0, _UNKNOWN_EVICTION
    advice = "" if state == "good" else ADVICE
    if state == "bad" and is_allowed:
        state, advice = "note", "HEADRACE_ALLOW_EVICTION is set: entities may begin at 0 again"
    if dropped:
        state = "note" if state == "good" else state
        description += f"; {dropped:,} keys were dropped since it started"
        advice = advice or "compare the store with `headrace verify`"
    return Finding("redis memory", state, description, advice)


_UNKNOWN_EVICTION: tuple[State, str] = ("note", "the user of the URL may not ask for its maxmemory-policy (+info)")


def _eviction_risk(link: RedisLink) -> tuple[State, str]:
    """State and description of the node with the greatest risk."""
    risk: tuple[State, str] = ("good", "keeps all records")
    for node, info in link.info("memory").items():
        eviction = Eviction.of_info(info)
        if eviction is None:
            risk = "note", f"{node} does not tell its maxmemory-policy"
        elif eviction.may_drop:
            return "bad", f"{node} may drop records: {eviction}"
    return risk


def _broker(settings: Settings) -> Finding:
    try:
        return Finding("broker", "good", _ask_broker(settings))
    except MissingExtraError as exc:
        return Finding("broker", "note", "not asked", str(exc))
    except ConfigError as exc:
        return Finding("broker", "bad", str(exc), "set HEADRACE_BROKERS and HEADRACE_KAFKA")
    except HeadraceError as exc:
        return Finding("broker", "note", str(exc), f"set HEADRACE_BROKERS{_OR_UP}")


def _ask_broker(settings: Settings) -> str:
    require("confluent_kafka")
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    from headrace.streams.kafka.client import connected

    client = connected(AdminClient, settings.brokers, {**settings.kafka, "log_level": 0})
    try:
        topics = client.list_topics(timeout=ANSWER_S_MAX).topics
    except KafkaException as exc:
        raise ServiceError(f"broker {settings.brokers} does not answer: {exc.args[0].str()}") from exc
    return f"{settings.brokers}, topics {', '.join(sorted(topics)) or 'none yet'}"


def _port(settings: Settings) -> Finding:
    try:
        require_address(settings.host, settings.port)
    except PortBusyError as exc:
        return Finding("serving port", "note", str(exc), "serving may run already; else set HEADRACE_PORT")
    return Finding("serving port", "good", f"{settings.host}:{settings.port} is free")
