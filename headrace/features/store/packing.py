"""Records of a flush, packed in chunks while Redis reads the chunks before."""

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.slab import Slab
from headrace.features.store.fences import PIECE_MAX
from headrace.kernels.spans import Spans, spans_of


class Packing:
    """Records of a slab, packed on demand, some hundred at a time to amortise the cost of a call.

    rows (n,), with the sequences (n,) of their shards' flush. `texts` (n,) are their keys.
    """

    def __init__(self, slab: Slab, rows: NDArray[np.int64], sequences: NDArray[np.int64], arrival_us: int) -> None:
        self.texts = spans_of(slab.key_texts(rows))
        self._rows = rows
        self._slab = slab
        self._sequences = sequences
        self._arrival_us = arrival_us
        self._packed, self._begin, self._end = Spans(np.zeros(0, np.uint8), np.zeros(1, np.int64)), 0, 0

    def part(self, shard_begin: int, begin: int, end: int) -> Spans:
        """Records `begin` to `end`, counted from row `shard_begin`; best asked for in order."""
        begin, end = shard_begin + begin, shard_begin + end
        if not self._begin <= begin <= end <= self._end:
            self._begin, self._end = begin, max(end, min(begin + PIECE_MAX, len(self._rows)))
            cut = slice(self._begin, self._end)
            self._packed = self._slab.pack_spans(self._rows[cut], self._sequences[cut], self._arrival_us)
        return self._packed.part(begin - self._begin, end - self._begin)
