"""Sources from what a person types: `kafka://host:9092`, a file, a glob, the folder of an archive.

kafka://host:9092,host2:9092?start=2026-01-01T00:00:00        the events' topics, from a start on (below)
data/*.parquet    Engagement=data/engagements/**/*.arrow      files of the view's event, or of the event named
archive/                                                      a folder that the archiver wrote
s3://bucket/log/*.parquet    memory://log.arrow               the same on any filesystem of fsspec or pyarrow

Where the store has read a partition already, the flow goes on there. Else it begins at `start`:

earliest    latest             the first event that is kept, which is the default; what comes from now on
2026-01-01T00:00:00            what was appended since; UTC unless it says another zone
1200    0:1200,1:900           an offset of every partition, or of each by its number
stored                         nowhere: a partition that the store does not know is an error
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import parse_qsl

from headrace.errors import ConfigError
from headrace.redaction import shown_url
from headrace.schemas import Event, spec_of
from headrace.streams.file_source import ROWS_MAX, FileSource
from headrace.streams.kafka_source import KafkaSource, Start
from headrace.streams.positions import refuse_both
from headrace.streams.source import Batch, Source, described
from headrace.streams.time_merge import TimeMerge

KAFKA = "kafka://"
OFFSET_MAX = 2**63 - 1


class MergedSource:
    """Several sources as one: their partitions one after the other, polled in turn."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)

    def describe(self) -> str:
        """All of them."""
        return ", ".join(map(described, self.sources))

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will ever come from any."""
        return all(source.exhausted for source in self.sources)

    def partitions(self) -> list[str]:
        """Every partition of all."""
        return [name for source in self.sources for name in source.partitions()]

    def share(self, index: int, count: int) -> Self:
        """A fresh source of one part of each."""
        return type(self)([source.share(index, count) for source in self.sources])

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each partition from its offset there on.

        Raises:
            ConfigError: as each source, or files and their topic are read from their start side by side.
        """
        files = {source.topic for source in file_sources(self) if not source.beside_topic}
        topics = [source for source in self.sources if isinstance(source, KafkaSource) and source.start is None]
        refuse_both(files.intersection(topic for source in topics for topic in source.topics), positions)
        for source in self.sources:
            source.seek(positions)

    def poll(self) -> list[Batch]:
        """What there is now."""
        return [batch for source in self.sources if not source.exhausted for batch in source.poll()]

    def close(self) -> None:
        """Let go of all."""
        for source in self.sources:
            source.close()


def sources_of_urls(
    urls: Sequence[str],
    events: Sequence[type[Event]],
    *,
    until_end: bool = False,
    rows_max: int = ROWS_MAX,
    config: Mapping[str, Any] | None = None,
    beside_topic: bool = False,
) -> Source:
    """The source that `urls` name, of `events`; several of files are read side by side in event time.

    `config` goes to librdkafka. `beside_topic`: files and topics hold different events, so both count.

    Raises:
        ConfigError: a URL that cannot be understood, or files for one event where there are several.
    """
    options: dict[str, Any] = {"until_end": until_end, "rows_max": rows_max, "config": config}
    found: list[Source] = []
    files: list[FileSource] = []
    for url in urls:
        source = source_of_url(url, events, **options, beside_topic=beside_topic, before=files)
        found.append(source)
        files += [source] if isinstance(source, FileSource) else []
    if len(files) > 1:
        found = [TimeMerge(files), *(source for source in found if not isinstance(source, FileSource))]
    return found[0] if len(found) == 1 else MergedSource(found)


def file_sources(source: Source) -> list[FileSource]:
    """The sources of files that `sources_of_urls` made a source of."""
    if isinstance(source, FileSource):
        return [source]
    parts = source.sources if isinstance(source, (MergedSource, TimeMerge)) else []
    return [file for part in parts for file in file_sources(part)]


def source_of_url(
    url: str,
    events: Sequence[type[Event]],
    *,
    until_end: bool = False,
    rows_max: int = ROWS_MAX,
    config: Mapping[str, Any] | None = None,
    beside_topic: bool = False,
    before: Sequence[FileSource] = (),
) -> Source:
    """The source that one URL names, without files that sources of `before` read; `sources_of_urls` says more."""
    named, place = named_url(url, events)
    if place.startswith(KAFKA):
        brokers, text = _kafka_parts(place)
        start = _start(text, named) if text is not None else "earliest" if beside_topic else None
        return KafkaSource(brokers, named, until_end=until_end, start=start, config=config)
    return FileSource(place, named[0], rows_max=rows_max, beside_topic=beside_topic, before=before)


def _kafka_parts(url: str) -> tuple[str, str | None]:
    """Brokers and start of a topic's URL, once it holds nothing that would be left out unseen."""
    brokers, _, query = url.removeprefix(KAFKA).partition("?")
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


def named_url(url: str, events: Sequence[type[Event]]) -> tuple[Sequence[type[Event]], str]:
    """The events that one URL is of, and the URL without the name: `Engagement=log.parquet`; a topic is of all.

    Raises:
        ConfigError: files for one event where there are several.
    """
    if not url.strip():
        raise ConfigError("events '': write kafka://HOST:PORT, a file, a glob such as log/*.parquet, or an archive")
    name, equals, path = url.partition("=")
    named = [event for event in events if equals and event.__name__ == name]
    if not named and len(events) > 1 and not url.startswith(KAFKA):
        names = ", ".join(event.__name__ for event in events)
        raise ConfigError(
            f"events {shown_url(url)!r}: the views read {names}; write {events[0].__name__}=PATH for each of them"
        )
    return (named, path) if named else (list(events), url)


def _start(text: str, events: Sequence[type[Event]]) -> Start:
    words: dict[str, Start] = {"earliest": "earliest", "latest": "latest", "stored": "stored"}
    if text in words:
        return words[text]
    with contextlib.suppress(ValueError):
        if text.isdecimal() and int(text) <= OFFSET_MAX:
            return int(text)
        if re.fullmatch(r"\d+:\d+(,\d+:\d+)*", text):
            offsets = [part.split(":") for part in text.split(",")]
            return {f"{spec_of(event).topic}/{int(number)}": int(at) for event in events for number, at in offsets}
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise ConfigError(
        f"start={text}: write earliest, latest, stored, a time such as 2026-01-01T00:00:00, an offset such as 1200, or "
        "one of each partition such as 0:1200,1:900"
    )
