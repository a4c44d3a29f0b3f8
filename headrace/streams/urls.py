"""Sources by URL: `kafka://host:9092`, a file, a glob, the folder of an archive.

kafka://host:9092,host2:9092?start=2026-01-01T00:00:00        the events' topics, from `start` on (below)
data/*.parquet    Engagement=data/engagements/**/*.arrow      files of the view's event, or of the event named
archive/                                                      a folder that the archiver wrote
s3://bucket/log/*.parquet    memory://log.arrow               files on any filesystem of fsspec or pyarrow

A flow resumes partitions that the store has read. Other partitions begin at `start`:

earliest    latest             the first event that the broker keeps, the default; events appended from now on
2026-01-01T00:00:00            events appended since; UTC unless another zone is given
1200    0:1200,1:900           an offset of every partition, or of each by its number
stored                         nowhere: a partition unknown to the store is an error
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import ConfigError
from headrace.redaction import shown_url
from headrace.schemas import Event
from headrace.streams.file_source import open_files
from headrace.streams.source import MergedSource, OpenOptions, Source
from headrace.streams.time_merge import TimeMerge

Opener = Callable[[str, OpenOptions], Source]
"""A function that opens a URL, without the prefix that names its event."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The way to open URLs of one scheme as sources.

    Args:
        open: opens the source of one URL.
        holds_all_events: a URL holds all events; otherwise one event, which must be named if there are several.
        merge: combines several sources into one; None: they are polled in turn.
    """

    open: Opener
    holds_all_events: bool = False
    merge: Callable[[Sequence[Any]], Source] | None = None


def _open_topics(url: str, options: OpenOptions) -> Source:
    from headrace.streams.kafka.url import open_topics  # imports the broker's client, an optional package

    return open_topics(url, options)


FILES = Scheme(open_files, merge=TimeMerge)
SCHEMES: dict[str, Scheme] = {"kafka": Scheme(_open_topics, holds_all_events=True)}
"""Name before "://" -> scheme. A new source is one file and one entry here."""


def sources_of_urls(urls: Sequence[str], events: Sequence[type[Event]], **options: Any) -> Source:
    """Open the source of `events` that `urls` name; several sources of files are merged by event time.

    `options`: `until_end`, `rows_max`, `config`, `beside_topic` and `csv_time_format` of `OpenOptions`.

    Raises:
        ConfigError: a URL is invalid, or it is for one event and does not name which of several.
    """
    opened: dict[Scheme, list[Source]] = {}
    for url in urls:
        named, place = named_url(url, events)
        scheme = scheme_of(place)
        before = opened.setdefault(scheme, [])
        before.append(scheme.open(place, OpenOptions(named, before=tuple(before), **options)))
    sources: list[Source] = []
    for scheme, of_scheme in sorted(opened.items(), key=lambda pair: pair[0].merge is None):  # history first
        sources += [scheme.merge(of_scheme)] if scheme.merge is not None and len(of_scheme) > 1 else of_scheme
    return sources[0] if len(sources) == 1 else MergedSource(sources)


def source_of_url(url: str, events: Sequence[type[Event]], **options: Any) -> Source:
    """Open the source that one URL names; see `sources_of_urls`."""
    return sources_of_urls([url], events, **options)


def scheme_of(url: str) -> Scheme:
    """The scheme of a URL without an event's name; URLs of filesystems and plain paths have the scheme `FILES`."""
    return SCHEMES.get(url.partition("://")[0], FILES)


def named_url(url: str, events: Sequence[type[Event]]) -> tuple[Sequence[type[Event]], str]:
    """Split a URL such as `Engagement=log.parquet` into the events that it holds and the URL without the name.

    Raises:
        ConfigError: the URL is for one event and does not name which of several, or lacks a slash.
    """
    if not url.strip():
        raise ConfigError("events '': write kafka://HOST:PORT, a file, a glob such as log/*.parquet, or an archive")
    name, equals, path = url.partition("=")
    named = [event for event in events if equals and event.__name__ == name]
    scheme, _, rest = (path if named else url).partition(":")
    if scheme in SCHEMES and not rest.startswith("//"):
        raise ConfigError(f"events {shown_url(url)!r}: two slashes follow {scheme}:, as in {scheme}://HOST:PORT")
    if not named and len(events) > 1 and not scheme_of(url).holds_all_events:
        names = ", ".join(event.__name__ for event in events)
        raise ConfigError(
            f"events {shown_url(url)!r}: the views read {names}; write {events[0].__name__}=PATH for each of them"
        )
    return (named, path) if named else (list(events), url)
