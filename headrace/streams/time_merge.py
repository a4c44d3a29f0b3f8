"""Several sources of files merged by event time, as a broker would have delivered their rows.

    first   |--------- batch ---------|--- batch ...      A poll returns the rows of each source below a common time:
    second  |--- batch ---|------ batch ------| ...       no row comes after far newer rows of another file.
            '---.---'---.-' polls

One batch of each source is in memory. The order of each source is kept; a source that is not sorted is cut by the
running maximum of its event times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas import Codec, Event, codec_for, spec_of
from headrace.streams.file_source import FileSource
from headrace.streams.source import Batch, MergedSource

STRETCH_ROWS, SOURCE_ROWS = 4_096, 1_024
"""Rows per poll over all sources, and the minimum per source: more are cheaper, fewer are closer together in time."""

_NEVER = -(2**63)


@dataclass(slots=True)
class _Head:
    """A source's current batch, of which rows from `begin` on remain, and the newest time up to each row, (n_rows,)."""

    batch: Batch
    newest_us: NDArray[np.int64]
    begin: int = 0


class TimeMerge(MergedSource):
    """Several sources, merged by event time."""

    sources: Sequence[FileSource]

    def __init__(self, sources: Sequence[FileSource]) -> None:
        super().__init__(sources)
        self._heads: list[_Head | None] = [None] * len(self.sources)
        self._codecs: dict[type[Event], Codec] = {}

    @property
    def exhausted(self) -> bool:
        """Whether all rows of all sources have been returned."""
        return not any(self._heads) and super().exhausted

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each file from the row in `positions` on."""
        super().seek(positions)
        self._heads = [None] * len(self.sources)

    def poll(self) -> list[Batch]:
        """The rows of the next interval of time, at most one batch per source."""
        for index, source in enumerate(self.sources):
            if self._heads[index] is None and not source.exhausted:
                for batch in source.poll():  # at most one
                    self._heads[index] = _Head(batch, self._newest_us(source.event, batch))
        heads = [head for head in self._heads if head is not None]
        rows = max(STRETCH_ROWS // max(len(heads), 1), SOURCE_ROWS)
        lasts = [(head, min(head.begin + rows, len(head.newest_us)) - 1) for head in heads if len(head.newest_us)]
        cut_us = min((int(head.newest_us[last]) for head, last in lasts), default=_NEVER)
        batches = []
        for index, head in enumerate(self._heads):
            if head is None:
                continue
            end = int(np.searchsorted(head.newest_us, cut_us, "right"))
            if end > head.begin or not len(head.newest_us):
                batches.append(_part(head, end))
                head.begin = end
            if end == len(head.newest_us):
                self._heads[index] = None
        return batches

    def _newest_us(self, event: type[Event], batch: Batch) -> NDArray[np.int64]:
        """Newest event time up to each row or line; a line that is not an event takes that of the line before it."""
        time = pl.col(spec_of(event).time).cast(pl.Datetime("us")).cast(pl.Int64).fill_null(_NEVER)
        times_us = np.full(len(batch.offsets), _NEVER, np.int64)
        if batch.frame is not None:
            times_us[:] = batch.frame.select(time).to_series().to_numpy()
        elif batch.payloads:
            decoded = self._codec(event, batch.codec).decode(batch.payloads)
            times_us[decoded.payload_index] = decoded.frame.select(time).to_series().to_numpy()
        return np.maximum.accumulate(times_us)

    def _codec(self, event: type[Event], codec: Codec | str | None) -> Codec:
        if codec is not None and not isinstance(codec, str):
            return codec
        if event not in self._codecs:
            self._codecs[event] = codec_for(event, codec)
        return self._codecs[event]


def _part(head: _Head, end: int) -> Batch:
    """Rows of a head's batch in [begin, end)."""
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
