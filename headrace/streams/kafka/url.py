"""Topics by URL: `kafka://host:9092,host2:9092?start=2026-01-01T00:00:00`; the topics are those of the events."""

import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from headrace.errors import ConfigError
from headrace.redaction import shown_url
from headrace.schemas import Event, spec_of
from headrace.streams.kafka_source import KafkaSource, Start
from headrace.streams.positions import OFFSET_MAX
from headrace.streams.source import OpenOptions


def open_topics(url: str, options: OpenOptions) -> KafkaSource:
    """Open the events' topics at the brokers, and from the start, that a URL names.

    Raises:
        ConfigError: the URL is invalid.
    """
    brokers, text = _brokers_and_start(url)
    start = _start(text, options.events) if text is not None else "earliest" if options.beside_topic else None
    return KafkaSource(brokers, options.events, until_end=options.until_end, start=start, config=options.config)


def _brokers_and_start(url: str) -> tuple[str, str | None]:
    """Parse the brokers and start of a URL; anything else in it is an error, so that nothing is silently ignored."""
    brokers, _, query = url.removeprefix("kafka://").partition("?")
    words = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(words) - {"start"})
    if "@" in url:
        raise ConfigError(
            f"{shown_url(url)}: user and password are options of the client: HEADRACE_KAFKA="
            '\'{"sasl.username": ..., "sasl.password": ...}\', with security.protocol and sasl.mechanism'
        )
    if not brokers or re.search(r"[/#\s]", brokers):
        raise ConfigError(
            f"{shown_url(url)}: write kafka://HOST:PORT, several separated by commas; topics are the events' own"
        )
    if unknown:
        raise ConfigError(
            f"{shown_url(url)}: unknown {', '.join(unknown)}; only start= is known, others are HEADRACE_KAFKA's"
        )
    return brokers, words.get("start")


def _start(text: str, events: Sequence[type[Event]]) -> Start:
    words: dict[str, Start] = {"earliest": "earliest", "latest": "latest", "stored": "stored"}
    if text in words:
        return words[text]
    with contextlib.suppress(ValueError):
        if text.isdecimal() and int(text) <= OFFSET_MAX:
            return int(text)
        if re.fullmatch(r"\d+:\d+(,\d+:\d+)*", text):
            offsets = [part.split(":") for part in text.split(",")]
            return {
                f"{spec_of(event).topic}/{int(number)}": int(offset) for event in events for number, offset in offsets
            }
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise ConfigError(
        f"start={text}: write earliest, latest, stored, a time such as 2026-01-01T00:00:00, an offset such as 1200, or "
        "one of each partition such as 0:1200,1:900"
    )
