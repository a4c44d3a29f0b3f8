"""Sources of events: batches with offsets, from a broker or from files.

A source never commits anything. Its reader stores `{partition: next offset}` with the data it produced, and seeks to
these offsets after a restart. A partition's name is "<topic>/<rest>".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.clock import wall_us
from headrace.schemas import Codec, Event
from headrace.streams.positions import Reached, refuse_both


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Positions of archived rows in their topic: the partition, and the offset of each row, (n,).

    For files archived without offsets only a range is known: a row's offset lies in [first, offset]. Otherwise `first`
    is None.
    """

    partition: str
    offsets: NDArray[np.int64]
    first: int | None = None

    def take(self, index: NDArray[np.int64] | slice) -> "Origin":
        """The origin of the rows that an index (m,) or a slice selects."""
        return Origin(self.partition, self.offsets[index], self.first)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Payloads of a stream, or rows of a file, that one poll returned for one partition.

    `partition` is "<topic>/<number>" or "<topic>/<file>". `offsets` int64 (n,) ascend, one per payload or row;
    `next_offset` follows the last of them. A batch has either `payloads` or a `frame`. `appended_us` int64 (n,) is the
    broker's append time of each payload; `arrival_us` is by default the current time. `codec` overrides the event's
    codec, as a name or an object; `ended` means that the partition has nothing more. `unfinished` is a payload at
    `next_offset` that its writer has not completed, so it is not an event yet. `origin` is the position of archived
    rows in their topic, after `tell_origins`.
    """

    topic: str
    partition: str
    offsets: NDArray[np.int64]
    next_offset: int
    payloads: list[bytes] | None = None
    frame: pl.DataFrame | None = None
    appended_us: NDArray[np.int64] | None = None
    arrival_us: int = field(default_factory=wall_us)
    codec: str | Codec | None = None
    ended: bool = False
    unfinished: bytes | None = None
    origin: Origin | None = None

    @staticmethod
    def of_payloads(
        partition: str, offsets: NDArray[np.int64], payloads: list[bytes], *, codec: str | Codec | None = None
    ) -> "Batch":
        """A batch of one or more payloads of a partition that arrive now, one per offset."""
        return Batch(
            topic=partition.partition("/")[0],
            partition=partition,
            offsets=offsets,
            next_offset=int(offsets[-1]) + 1,
            payloads=payloads,
            codec=codec,
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class EventBatch:
    """The good rows of one `Batch`.

    `frame` has the event's declared columns, (n_rows,), and may have no rows; `offsets` and `appended_us` are int64
    (n_rows,), and rows of one payload share an offset. `next_offset` is also past bad rows. `prepared` holds rows that
    were prepared in advance for views, by fingerprint.
    """

    event: type[Event]
    partition: str
    offsets: NDArray[np.int64]
    next_offset: int
    frame: pl.DataFrame
    appended_us: NDArray[np.int64] | None
    arrival_us: int
    ended: bool = False
    origin: Origin | None = None
    prepared: dict[str, Any] = field(default_factory=dict)

    def since(self, offset: int) -> "EventBatch":
        """The rows at or after `offset`."""
        if not len(self.offsets) or self.offsets[0] >= offset:
            return self
        is_new = self.offsets >= offset
        return replace(
            self,
            offsets=self.offsets[is_new],
            frame=self.frame.filter(pl.Series(is_new)),
            appended_us=None if self.appended_us is None else self.appended_us[is_new],
            origin=None if self.origin is None else self.origin.take(np.flatnonzero(is_new)),
            prepared={},
        )


class Source(Protocol):
    """Batches of some partitions. Used by one thread; it connects at the first call.

    Subclass it to inherit the methods that have a default. Each scheme of `urls` opens one kind of source.
    """

    has_live_offsets: ClassVar[bool] = False
    """Whether partitions are those of the live topic, "<topic>/<number>", with its offsets; otherwise of history."""

    @property
    def exhausted(self) -> bool:
        """Whether there will never be another batch."""
        ...

    def partitions(self) -> list[str]:
        """Every partition of the whole source, of all shares, in a fixed order."""
        ...

    def share(self, index: int, count: int) -> Self:
        """A fresh, unread source of one of `count` disjoint parts of the partitions, for worker `index`."""
        ...

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each partition from its offset in `positions` on; others from the source's default start.

        Raises:
            OffsetLostError: an offset is no longer available.
            ConfigError: a reader of the positions would get events twice; see the module `positions`.
        """
        ...

    def poll(self) -> list[Batch]:
        """Batches that are available now, at most one per partition; [] if there are none. Never blocks."""
        ...

    def close(self) -> None:
        """Release files and connections. Default: does nothing."""
        return

    def describe(self) -> str:
        """A short description of the source, without secrets. Default: the name of the class."""
        return type(self).__name__

    def parts(self) -> "Sequence[Source]":
        """The sources of which this source consists. Default: itself."""
        return [self]

    def unasked_topics(self) -> Collection[str]:
        """Topics, live or as files, whose events may also come from another source: the user has not ruled it out.

        Default: none.
        """
        return ()

    def ends(self) -> dict[str, int]:
        """Next offset of each live partition at the end of the history. Default: {}, if it is not known."""
        return {}

    def tell_origins(self) -> None:
        """Fill `Batch.origin` from now on, if origins are known. Default: does nothing."""
        return

    def refuse_changed(self, readers: Sequence[Reached]) -> None:
        """Check that the rows of each partition that `readers` have read are unchanged. Default: does nothing.

        Raises:
            SourceError: a partition has changed since it was read.
        """
        del readers


class MergedSource(Source):
    """Several sources combined: all their partitions, polled in turn."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources

    def describe(self) -> str:
        """Descriptions of all sources."""
        return ", ".join(source.describe() for source in self.sources)

    def parts(self) -> list[Source]:
        """The parts of all sources."""
        return [part for source in self.sources for part in source.parts()]

    @property
    def exhausted(self) -> bool:
        """Whether all sources are exhausted."""
        return all(source.exhausted for source in self.sources)

    def partitions(self) -> list[str]:
        """Every partition of all sources."""
        return [name for source in self.sources for name in source.partitions()]

    def share(self, index: int, count: int) -> Self:
        """A fresh source with one share of each source."""
        return type(self)([source.share(index, count) for source in self.sources])

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each partition from its offset in `positions` on.

        Raises:
            ConfigError: a source raises it, or files and their topic would both be read from their start.
        """
        live, history = set[str](), set[str]()
        for part in self.parts():
            (live if part.has_live_offsets else history).update(part.unasked_topics())
        refuse_both(history & live, positions)
        for source in self.sources:
            source.seek(positions)

    def poll(self) -> list[Batch]:
        """The available batches of every source."""
        return [batch for source in self.sources if not source.exhausted for batch in source.poll()]

    def close(self) -> None:
        """Close all sources."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Options for opening a URL.

    Args:
        events: event classes of the URL; a single one unless the scheme's URLs hold all events.
        until_end: stop at the current end of the log; history always ends.
        rows_max: rows per batch; None: the source's default.
        config: options of the broker's client.
        beside_topic: other URLs hold other events, so none is counted twice.
        before: sources that were opened for earlier URLs of the same scheme.
        csv_time_format: strptime format of times in CSV files that are not ISO 8601.
    """

    events: Sequence[type[Event]]
    until_end: bool = False
    rows_max: int | None = None
    config: Mapping[str, Any] | None = None
    beside_topic: bool = False
    before: Sequence[Any] = ()
    csv_time_format: str | None = None


def described(thing: object) -> str:
    """Describe a source or step briefly, without secrets, by its `describe` or else its class."""
    return thing.describe() if hasattr(thing, "describe") else type(thing).__name__
