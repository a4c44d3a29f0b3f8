"""Where events come from: batches with offsets, from a broker or from files.

A source never commits anything. Its reader keeps `{partition: next offset}` beside the data it produced, and seeks
there when it starts again: offsets live with the data. A partition's name is "<topic>/<rest>".
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
    """Where rows of an archive stood in their topic: the partition, and the offset of each row, (n,).

    Of files archived without offsets only a range is known: a row's offset lies in [first, offset]. Else `first` is
    None.
    """

    partition: str
    offsets: NDArray[np.int64]
    first: int | None = None

    def take(self, index: NDArray[np.int64] | slice) -> "Origin":
        """Origins of the rows that an index (m,) or a slice selects."""
        return Origin(self.partition, self.offsets[index], self.first)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Payloads of a stream or rows of a file that one poll brought of one partition.

    `partition` is "<topic>/<number>" or "<topic>/<file>". `offsets` int64 (n,) ascending, one a payload or one a row;
    `next_offset` follows the last of them. There are `payloads` or a `frame`. `appended_us` int64 (n,) is the broker's
    append time of each payload, `arrival_us` by default the present. `codec` overrides the event's own, by its name or
    itself; `ended` says that the partition has nothing more. `unfinished` is a payload at `next_offset` whose writer
    has not ended it: it is no event yet. `origin` is where rows of an archive stood in their topic, if the source was
    asked to tell.
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
        """Payloads of a partition that arrive now, one an offset; at least one."""
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

    `frame` has the event's declared columns, (n_rows,), possibly none; `offsets` and `appended_us` are int64 (n_rows,)
    and rows of one payload share an offset. `next_offset` is past bad rows too. `prepared` holds rows that were
    prepared ahead for views, by fingerprint.
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
        """The rows at `offset` and past it."""
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
    """Batches of some partitions. Used by one thread; nothing connects before the first call.

    A source subclasses it, for the defaults of the methods that have one. Each scheme of `urls` opens one kind.
    """

    has_live_offsets: ClassVar[bool] = False
    """Whether partitions are those of the live topic, "<topic>/<number>", with its offsets; else they are history."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will ever come."""
        ...

    def partitions(self) -> list[str]:
        """Every partition of the whole source, whoever reads it, in a fixed order."""
        ...

    def share(self, index: int, count: int) -> Self:
        """A fresh, unread source of one of `count` disjoint parts of the partitions, for worker `index`."""
        ...

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each partition from its offset there on; a partition not in `positions` from the source's own start.

        Raises:
            OffsetLostError: an offset is no longer there.
            ConfigError: a reader of the positions would get events twice; see `positions`.
        """
        ...

    def poll(self) -> list[Batch]:
        """Batches that are there now, at most one a partition; [] when there is nothing yet. Never blocks."""
        ...

    def close(self) -> None:
        """Release files and connections. Default: there are none."""
        return

    def describe(self) -> str:
        """What is read, in a few words without secrets. Default: the name of the class."""
        return type(self).__name__

    def parts(self) -> "Sequence[Source]":
        """The sources that this one consists of. Default: itself."""
        return [self]

    def unasked_topics(self) -> Collection[str]:
        """Topics read from their start, by log or files, though nobody has said that no other way brings their events.

        Default: none.
        """
        return ()

    def ends(self) -> dict[str, int]:
        """Next offset of each live partition up to which the history reaches. Default: it does not say."""
        return {}

    def tell_origins(self) -> None:
        """Fill `Batch.origin` from now on, where origins are known. Default: they are not."""
        return

    def refuse_changed(self, readers: Sequence[Reached]) -> None:
        """Check that what `readers` have read of each partition is unchanged. Default: it cannot change.

        Raises:
            SourceError: a partition has changed since it was read.
        """
        del readers


class MergedSource(Source):
    """Several sources as one: their partitions one after the other, polled in turn."""

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
        """Whether nothing more will ever come from any."""
        return all(source.exhausted for source in self.sources)

    def partitions(self) -> list[str]:
        """Every partition of all sources."""
        return [name for source in self.sources for name in source.partitions()]

    def share(self, index: int, count: int) -> Self:
        """A fresh source of one part of each."""
        return type(self)([source.share(index, count) for source in self.sources])

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each partition from its offset there on.

        Raises:
            ConfigError: as each source, or files and their topic are read from their start side by side.
        """
        live, history = set[str](), set[str]()
        for part in self.parts():
            (live if part.has_live_offsets else history).update(part.unasked_topics())
        refuse_both(history & live, positions)
        for source in self.sources:
            source.seek(positions)

    def poll(self) -> list[Batch]:
        """Batches of every source that are there now."""
        return [batch for source in self.sources if not source.exhausted for batch in source.poll()]

    def close(self) -> None:
        """Close all sources."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What the opener of a scheme is given beside the URL.

    Args:
        events: classes that the URL is of; one where the scheme does not hold all of them.
        until_end: end where the log ends now; what is history ends in any case.
        rows_max: rows a batch; None: what suits the source.
        config: options of the broker's client.
        beside_topic: other URLs hold other events, so none is counted twice.
        before: sources of the same scheme that were opened for URLs before this one.
    """

    events: Sequence[type[Event]]
    until_end: bool = False
    rows_max: int | None = None
    config: Mapping[str, Any] | None = None
    beside_topic: bool = False
    before: Sequence[Any] = ()


def described(thing: object) -> str:
    """What a source reads or a step writes, in a few words without secrets: its `describe`, else its class."""
    return thing.describe() if hasattr(thing, "describe") else type(thing).__name__
