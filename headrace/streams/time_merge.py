"""Several sources of files as one, their rows side by side in event time, as a broker would have brought them.

    first   |--------- batch ---------|--- batch ...      A poll hands out what is below a common time of each source:
    second  |--- batch ---|------ batch ------| ...       no row waits behind rows of another file that are far younger.
            '---.---'---.-' polls

One batch of each source is in memory. Each source's own order is kept; one that is not sorted is cut where its newest
event so far is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas import Codec, Event, codec_for, spec_of
from headrace.streams.file_source import FileSource
from headrace.streams.source import Batch, Source

STRETCH_ROWS, SOURCE_ROWS = 4_096, 1_024
"""Rows of all sources in one poll, and at least of one: more cost less, fewer keep rows of one time closer together."""

_NEVER = -(2**63)


@dataclass(slots=True)
class _Head:
    """What is left of a source's batch: rows from `begin` on, and the newest time up to each row, (n_rows,)."""

    batch: Batch
    newest_us: NDArray[np.int64]
    begin: int = 0


class TimeMerge(Source):
    """`sources` as one source; see above."""

    def __init__(self, sources: Sequence[FileSource]) -> None:
        self.sources = list(sources)
        self._heads: list[_Head | None] = [None] * len(self.sources)
        self._codecs: dict[type[Event], Codec] = {}

    def describe(self) -> str:
        """All of them."""
        return ", ".join(source.describe() for source in self.sources)

    def parts(self) -> Sequence[Source]:
        """The sources of files."""
        return self.sources

    @property
    def exhausted(self) -> bool:
        """Whether all rows of all have been handed out."""
        return not any(self._heads) and all(source.exhausted for source in self.sources)

    def partitions(self) -> list[str]:
        """Every partition of all."""
        return [name for source in self.sources for name in source.partitions()]

    def share(self, index: int, count: int) -> Self:
        """A fresh source of one part of each."""
        return type(self)([source.share(index, count) for source in self.sources])

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each file from its row on."""
        for source in self.sources:
            source.seek(positions)
        self._heads = [None] * len(self.sources)

    def poll(self) -> list[Batch]:
        """The next stretch of time, at most one batch a source."""
        for place, source in enumerate(self.sources):
            if self._heads[place] is None and not source.exhausted:
                for batch in source.poll():  # at most one
                    self._heads[place] = _Head(batch, self._newest_us(source.event, batch))
        heads = [head for head in self._heads if head is not None]
        rows = max(STRETCH_ROWS // max(len(heads), 1), SOURCE_ROWS)
        lasts = [(head, min(head.begin + rows, len(head.newest_us)) - 1) for head in heads if len(head.newest_us)]
        cut_us = min((int(head.newest_us[last]) for head, last in lasts), default=_NEVER)
        found = []
        for place, head in enumerate(self._heads):
            if head is None:
                continue
            end = int(np.searchsorted(head.newest_us, cut_us, "right"))
            if end > head.begin or not len(head.newest_us):
                found.append(_part(head, end))
                head.begin = end
            if end == len(head.newest_us):
                self._heads[place] = None
        return found

    def close(self) -> None:
        """Let go of all."""
        for source in self.sources:
            source.close()

    def _newest_us(self, event: type[Event], batch: Batch) -> NDArray[np.int64]:
        """Newest event time up to each row or line; a line that is no event has that of the line before it."""
        time = pl.col(spec_of(event).time).cast(pl.Datetime("us")).cast(pl.Int64).fill_null(_NEVER)
        found = np.full(len(batch.offsets), _NEVER, np.int64)
        if batch.frame is not None:
            found[:] = batch.frame.select(time).to_series().to_numpy()
        elif batch.payloads:
            decoded = self._codec(event, batch.codec).decode(batch.payloads)
            found[decoded.payload_index] = decoded.frame.select(time).to_series().to_numpy()
        return np.maximum.accumulate(found)

    def _codec(self, event: type[Event], codec: Codec | str | None) -> Codec:
        if codec is not None and not isinstance(codec, str):
            return codec
        if event not in self._codecs:
            self._codecs[event] = codec_for(event, codec)
        return self._codecs[event]


def _part(head: _Head, end: int) -> Batch:
    """Rows of a batch from its head's on, before `end`."""
    batch, begin = head.batch, head.begin
    if begin == 0 and end == len(batch.offsets):
        return batch
    is_last = end == len(batch.offsets)
    return replace(
        batch,
        offsets=batch.offsets[begin:end],
        next_offset=batch.next_offset if is_last else int(batch.offsets[end]),
        payloads=None if batch.payloads is None else batch.payloads[begin:end],
        frame=None if batch.frame is None else batch.frame[begin:end],
        ended=batch.ended and is_last,
        unfinished=batch.unfinished if is_last else None,
        origin=None if batch.origin is None else batch.origin.take(slice(begin, end)),
    )
