"""One settings class: every knob with a default, read from the environment (`HEADRACE_…`) or the project's `.env`.

Command-line flags override these values; engine classes take plain arguments and never read settings themselves.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from headrace.clock import Clock, parse_clock
from headrace.errors import ConfigError


class Settings(BaseSettings):
    """What differs between a laptop, a test and production."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", env_file=".env", extra="ignore", frozen=True)

    brokers: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port, comma separated")
    kafka: dict[str, str] = Field({}, repr=False, description="further librdkafka options as JSON (SASL, TLS)")
    registry_url: str = Field("", repr=False, description="Confluent schema registry; empty: none")
    redis_url: str = Field("redis://127.0.0.1:6379/0", repr=False, description="the online store")
    namespace: str = Field("hr", description="prefix of every Redis key")
    shards: int = Field(32, ge=1, le=16_384, description="virtual shards; fixed for the life of a store")
    dead_letter_topic: str = Field("dead-letters", description="topic for events that could not be used")
    dead_letter_dir: Path = Field(Path(".headrace/dead_letters"), description="folder for the same, as JSON lines")
    future_s: float = Field(
        600.0, ge=0, description="how far ahead of the clock an event may be, in seconds of event time"
    )
    clock: str = Field(
        "wall", description="wall, fixed:<event_us>, accelerated:<event_us>:<wall_us>:<speed>, paced:... or file:<path>"
    )
    memory_records: int | None = Field(
        None,
        ge=1,
        description="records of a view that a flow keeps in memory; others are fetched when they are touched",
    )
    model_dir: Path = Field(Path(".headrace/models"), description="published snapshots")
    state_dir: Path = Field(Path(".headrace/state"), description="training state")
    archive_dir: Path = Field(Path(".headrace/archive"), description="the log as Parquet files by event day")
    archive_flush_s: float = Field(60.0, gt=0, description="seconds between two files of the archive")
    models_kept: int = Field(20, ge=2, description="published snapshots that stay on disk")
    publish_s: float = Field(2.0, gt=0, description="seconds between two published snapshots")
    lateness_s: float = Field(60.0, ge=0, description="how far behind the newest an event may arrive, event time")
    host: str = Field("127.0.0.1", description="address that serving listens on")
    port: int = Field(8000, ge=0, le=65_535, description="port that serving listens on")
    replicas: int = Field(1, ge=1, description="Ray Serve replicas")
    api_keys: tuple[str, ...] = Field(
        (), repr=False, description="accepted X-API-Key values as JSON; none: no key is asked"
    )
    in_flight_max: int = Field(256, ge=1, description="requests in flight in a replica before it answers 429")
    frozen_version: int | None = Field(None, description="snapshot scored beside the live one, for comparison only")
    torch_threads: int = Field(1, ge=1, description="threads of one torch operation in a process")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = Field(False, description="logs as JSON lines instead of text")

    @cached_property
    def event_clock(self) -> Clock:
        """The clock that `clock` describes."""
        return parse_clock(self.clock)


def load_settings() -> Settings:
    """Settings of this process's environment.

    Raises:
        ConfigError: a variable does not fit; the message names it and what it wants.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        field = str(first["loc"][0])
        name = "HEADRACE_" + field.upper() + "".join(f"[{part!r}]" for part in first["loc"][1:])
        if not Settings.model_fields[field].repr:  # the value is a secret, and so is the cause's text
            raise ConfigError(f"{name}: {first['msg']} (the value is not shown)") from None
        raise ConfigError(f"{name}={first['input']!r}: {first['msg']}") from exc
    except SettingsError as exc:
        raise ConfigError(f'{exc}: its HEADRACE_ variable wants JSON, such as \'{{"name": "value"}}\'') from None
