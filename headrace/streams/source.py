"""Where events come from: batches with offsets, from a broker or from files.

A source never commits anything. Its reader keeps `{partition: next offset}` beside the data it produced, and seeks
there when it starts again: offsets live with the data. A partition's name is "<topic>/<rest>".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas import Codec, Event
from headrace.streams.origin import Origin


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one poll brought of one partition: payloads of a stream, or rows of a file.

    `partition` is "<topic>/<number>" or "<topic>/<file>". `offsets` int64 (n,) ascending, one a payload or one a row;
    `next_offset` follows the last of them. `appended_us` int64 (n,) is the broker's append time of each payload.
    `codec` overrides the event's own, by its name or itself; `ended` says that the partition has nothing more.
    `unfinished` is a payload at `next_offset` that its writer was not done with: it is no event yet. `origin` tells of
    rows of an archive where they stood in their topic, if the source was asked.
    """

    topic: str
    partition: str
    offsets: NDArray[np.int64]
    next_offset: int
    payloads: list[bytes] | None
    frame: pl.DataFrame | None
    appended_us: NDArray[np.int64] | None
    arrival_us: int
    codec: str | Codec | None = None
    ended: bool = False
    unfinished: bytes | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class EventBatch:
    """The good rows of one `Batch`.

    `frame` has the event's declared columns, (n_rows,), possibly none; `offsets` and `appended_us` are int64 (n_rows,)
    and rows of one payload share an offset. `next_offset` counts bad rows too: they are done with. `prepared` is what
    views need of the rows, by fingerprint, where it was made ahead.
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


class Source(Protocol):
    """Batches of some partitions. Used by one thread; nothing connects before the first call."""

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
            ConfigError: a reader of the positions would get events again; see `positions`.
        """
        ...

    def poll(self) -> list[Batch]:
        """What there is now, at most one batch a partition; [] when there is nothing yet. Never blocks."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source or a step that can say in a few words what it reads or writes, and where, without secrets."""

    def describe(self) -> str:
        """Called once, when a flow has started."""
        ...


def described(thing: object) -> str:
    """What a source reads or a step writes, for people."""
    return thing.describe() if isinstance(thing, Described) else type(thing).__name__
