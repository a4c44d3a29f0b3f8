"""Settings with defaults, read from the environment (`HEADRACE_…`) or the project's `.env`.

Command-line flags override these values. Engine classes take plain arguments and never read settings.
"""

import difflib
import os
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from headrace import project
from headrace.clock import Clock, parse_clock
from headrace.errors import ConfigError
from headrace.stack_state import StackState

PREFIX = "HEADRACE_"
OTHER_VARIABLES = frozenset({"PROJECT"})
"""Variables that are not settings: HEADRACE_PROJECT is the project's folder."""
SPAN_S_MAX = 315_360_000.0
"""Ten years in seconds: a longer span is a mistake of units, and would exceed the range of times."""


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\sA-Z@,]+")
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")


class SettingsWarning(UserWarning):
    """An environment variable that looks like a setting but is not one."""


def _key_list(value: Any) -> Any:
    """Parse keys from a JSON list, or a text separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in {"[", "{", '"'}:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError('begins like JSON and is none; write key1,key2 or ["key1", "key2"]') from None
    if not value.strip():
        raise ValueError("set, but holds no key; write key1,key2, or leave it unset to ask for none")
    return [key.strip() for key in value.split(",")]


def _origins(value: Any) -> Any:
    """Parse origins from a JSON list, or a text separated by commas; an empty text has none."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError('begins like JSON and is none; write origin1,origin2 or ["origin1"]') from None
    return [origin.strip() for origin in value.split(",")] if value.strip() else []


def _origin(text: str) -> str:
    """An origin as browsers write it, `*`, or `null`; another one would match no page, and nothing would say why."""
    if text in {"*", "null"} or (_ORIGIN.fullmatch(text) and not _DEFAULT_PORT.fullmatch(text)):
        return text
    raise ValueError(
        "no origin as browsers send it; write scheme://host or scheme://host:port in lower case, without a path, a "
        "slash at the end or the scheme's own port"
    )


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _as_text(value: Any) -> Any:
    """Convert integers and booleans in a JSON object to librdkafka's text form."""
    if not isinstance(value, dict):
        return value
    return {
        name: str(option).lower() if isinstance(option, bool) else str(option) if isinstance(option, int) else option
        for name, option in value.items()
    }


Key = Annotated[str, Field(min_length=1, pattern=r"^[!-~]+$")]  # characters allowed in an HTTP header
Keys = Annotated[tuple[Key, ...], NoDecode, BeforeValidator(_key_list)]
Origin = Annotated[str, AfterValidator(_origin)]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_origins)]
Threads = Annotated[int | None, BeforeValidator(_none_if_empty)]
KafkaOptions = Annotated[dict[str, str], BeforeValidator(_as_text)]


def _span_s(default: float, description: str, **bounds: float) -> Any:
    """A field for a finite number of seconds."""
    return Field(default, le=SPAN_S_MAX, allow_inf_nan=False, description=description, **bounds)  # type: ignore[call-overload]


class Settings(BaseSettings):
    """Settings that differ between a laptop, a test and production."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    brokers: str = Field(
        "127.0.0.1:9092", pattern=r"^[^@\s]+$", description="Kafka bootstrap servers, host:port, comma separated"
    )
    kafka: KafkaOptions = Field({}, repr=False, description="further librdkafka options as JSON (SASL, TLS)")
    registry_url: str = Field("", repr=False, description="Confluent schema registry; empty: none")
    redis_url: str = Field("redis://127.0.0.1:6379/0", min_length=1, repr=False, description="the online store")
    allow_eviction: bool = Field(
        False, description="write although Redis may drop records when its memory is full (maxmemory-policy)"
    )
    namespace: str = Field("hr", pattern=r"^[A-Za-z0-9_.-]+$", description="prefix of every Redis key")
    redis_server: str | None = Field(
        None, description="server program of an embedded Redis; default: the wheel's, else the one on PATH"
    )
    local_redis_port: int | None = Field(
        None, ge=0, le=65_535, description="port of the Redis of `headrace up`; 0: any free one"
    )
    local_broker_port: int | None = Field(
        None, ge=0, le=65_535, description="port of the broker of `headrace up`; 0: any free one"
    )
    shards: int = Field(32, ge=1, le=16_384, description="virtual shards; fixed for the life of a store")
    dead_letter_topic: str = Field(
        "dead-letters", pattern=r"^[A-Za-z0-9_.-]{1,249}$", description="topic for events that could not be used"
    )
    dead_letter_dir: Path = Field(Path(".headrace/dead_letters"), description="folder for the same, as JSON lines")
    future_s: float = _span_s(600.0, "how far ahead of the clock an event may be, in seconds of event time", ge=0)
    clock: str = Field(
        "wall", description="wall, fixed:<event_us>, accelerated:<event_us>:<wall_us>:<speed>, paced:... or file:<path>"
    )
    threads: Threads = Field(
        None, ge=1, le=1_024, description="threads of the kernels in a process; default: one a core, at most 8"
    )
    memory_records: int | None = Field(
        None,
        ge=1,
        description="records of a view that a flow keeps in memory; others are fetched when they are touched",
    )
    model_dir: Path = Field(Path(".headrace/models"), description="published snapshots")
    state_dir: Path = Field(Path(".headrace/state"), description="training state")
    archive_dir: Path = Field(Path(".headrace/archive"), description="the log as Parquet files by event day")
    archive_flush_s: float = _span_s(60.0, "seconds between two files of the archive", gt=0)
    models_kept: int = Field(20, ge=2, description="published snapshots that stay on disk")
    publish_s: float = _span_s(2.0, "seconds between two published snapshots", gt=0)
    lateness_s: float = _span_s(60.0, "how far behind the newest an event may arrive, event time", ge=0)
    host: str = Field("127.0.0.1", min_length=1, description="address that serving and metrics listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port that serving listens on")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="port of /metrics of flows and training; 0: any free one; default: none"
    )
    replicas: int = Field(1, ge=1, le=1_024, description="Ray Serve replicas")
    api_keys: Keys = Field(
        (),
        repr=False,
        description="accepted API keys, separated by commas or as JSON, each id:sha256[:requests a second[:scope]], or "
        "the key itself; none: no key is asked",
    )
    api_keys_file: Path | None = Field(None, description="file of more API keys, one a line")
    cors_origins: Origins = Field(
        (), description="origins whose pages may call serving from a browser, separated by commas; none: CORS is off"
    )
    tls_cert: Path | None = Field(None, description="certificate (PEM) that serving listens with")
    tls_key: Path | None = Field(None, description="private key (PEM) of the certificate")
    drain_s: float = _span_s(1.0, "seconds from a stop, when /readyz says no, until no request is taken", ge=0)
    in_flight_max: int = Field(1_024, ge=1, description="requests in flight in a replica before it answers 429")
    request_timeout_s: float = _span_s(
        1.0, "deadline of a request that brings none in X-Request-Timeout-Ms, in seconds", gt=0
    )
    resident_mb: int = Field(
        0,
        ge=0,
        le=1_048_576,
        description="memory for candidates' features kept in a replica, in MB; 0: none are kept",
    )
    resident_refresh_s: float = _span_s(
        1.0, "seconds between two readings of the resident candidates, which are at most so old", gt=0
    )
    one_cpu: bool = Field(
        True,
        description="whether a replica keeps its event loop and its scoring of small requests on one CPU, the idlest, "
        "which serves some 1.2 times as many; Linux only",
    )
    traces_url: str = Field(
        "", pattern=r"^(https?://.+)?$", description="collector of traces, OTLP over HTTP: http://host:4318/v1/traces"
    )
    traces_share: float = Field(
        1.0, ge=0, le=1, allow_inf_nan=False, description="share of requests traced whose caller brings no trace"
    )
    frozen_version: int | None = Field(None, ge=1, description="snapshot scored beside the live one, for comparison")
    torch_threads: int = Field(1, ge=1, le=1_024, description="threads of one torch operation in a process")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = Field(False, description="logs as JSON lines instead of text")

    _stack: StackState | None = PrivateAttr(None)

    @property
    def stack(self) -> StackState | None:
        """The services of the project's `headrace up`, running or not, if these settings use one of their addresses."""
        return self._stack

    @property
    def serving_url(self) -> str:
        """URL of the HTTP server for clients on this machine."""
        return self.serving_url_of(self.port)

    def serving_url_of(self, port: int) -> str:
        """Like `serving_url`, with another port, for instance the one assigned for port 0."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @cached_property
    def event_clock(self) -> Clock:
        """The clock that `clock` describes.

        Raises:
            ConfigError: `clock` does not describe a clock.
        """
        try:
            return parse_clock(self.clock)
        except ConfigError as exc:
            raise ConfigError(f"{PREFIX}CLOCK: {exc}") from exc


def load_settings() -> Settings:
    """Load the settings from this process's environment; warns once of a variable that is not a setting.

    If the addresses of Redis and the broker are not set, and `headrace up` has been run in the project, they are those
    of `up`, even if it is not running: another server that happens to use the default ports is not used by mistake.

    Raises:
        ConfigError: a variable is not valid; the message names it and the allowed values.
    """
    try:
        env_file = project.env_file()
        settings = _with_stack(Settings(_env_file=env_file))
        _warn_of_unknown({*os.environ, *dotenv_values(env_file)})
    except ValidationError as exc:
        fault = _described(exc)
    except SettingsError as exc:
        named = re.search('field "([a-z_]+)"', str(exc))
        fault = f'{PREFIX}{named[1].upper() if named else "..."}: no JSON; write it as \'{{"name": "value"}}\''
    except (OSError, UnicodeDecodeError) as exc:
        fault = f"{env_file} cannot be read: {exc}"
    else:
        # Kernels and embedded services read these from the environment, but they may be set in `.env`.
        if settings.threads is not None:
            os.environ[f"{PREFIX}THREADS"] = str(settings.threads)
        if settings.redis_server:
            os.environ[f"{PREFIX}REDIS_SERVER"] = settings.redis_server
        return settings
    raise ConfigError(fault)  # outside the handlers: the exceptions there may quote a secret


def _with_stack(settings: Settings) -> Settings:
    """Fill in the addresses of the project's services if they are not set."""
    stack = project.stack()
    if stack is None:
        return settings
    addresses = {"redis_url": stack.store_url, "brokers": stack.brokers}
    unset = {name: address for name, address in addresses.items() if name not in settings.model_fields_set}
    if unset:
        settings = settings.model_copy(update=unset)
        settings._stack = stack  # noqa: SLF001
    return settings


def _described(exc: ValidationError) -> str:
    """The message for the first invalid variable."""
    first = exc.errors()[0]
    field = str(first["loc"][0])
    name = PREFIX + field.upper() + "".join(f"[{part!r}]" for part in first["loc"][1:])
    reason = first["msg"].removeprefix("Value error, ")
    about = Settings.model_fields[field]
    meaning = f"; its meaning: {about.description}" if about.description else ""
    if not about.repr or "@" in str(first["input"]):
        return f"{name}: {reason} (the value is not shown){meaning}"
    return f"{name}={first['input']!r}: {reason}{meaning}"


def _warn_of_unknown(names: set[str]) -> None:
    known = {*(field.upper() for field in Settings.model_fields), *OTHER_VARIABLES}
    for name in sorted(names - _WARNED):
        if not re.match(PREFIX, name, re.IGNORECASE) or name.upper().removeprefix(PREFIX) in known:
            continue
        _WARNED.add(name)
        nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), sorted(known), n=1, cutoff=0.0)[0]
        warnings.warn(
            f"{name} is no setting and is ignored; did you mean {PREFIX}{nearest}?", SettingsWarning, stacklevel=3
        )


_WARNED: set[str] = set()
