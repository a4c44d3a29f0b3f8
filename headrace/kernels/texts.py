"""The process's pool of texts by their 64-bit hash: state holds hashes, data frames and records hold the texts.

Append-only: an interned text stays for the life of the process, so memory grows with the vocabulary of the text
features, not with the number of events. Thread-safe.
"""

import threading
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel, part, plain
from headrace.kernels.hashing import hash_spans, xxh64
from headrace.kernels.id_map import IdMap

_NO_SEED = np.uint64(0)
Scalar = TypeVar("Scalar", bound=np.generic)


class Texts(NamedTuple):
    """The pool for kernels: the text of hash h is `data[offsets[r]:offsets[r + 1]]`, with r = `find_row(table, h)`.

    table (lines, 2) of an `IdMap`, offsets (rows + 1,), data (bytes,).
    """

    table: Ints
    offsets: Ints
    data: Bytes


class TextLines(NamedTuple):
    """Texts that a kernel has read: lines (room, 3) of hash, start and end in its data; used (1,) number of lines."""

    lines: Ints
    used: Ints

    @classmethod
    def of(cls, room: int) -> "TextLines":
        """An empty list with room for `room` texts."""
        return cls(np.empty((room, 3), np.int64), np.zeros(1, np.int64))


class TextPool:
    """A map from texts to hashes and back.

    >>> pool = TextPool()
    >>> hashes = pool.intern(pl.Series(["tea", "jam", "tea"]))
    >>> pool.texts(hashes).to_list(), len(pool)
    (['tea', 'jam', 'tea'], 2)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map = IdMap()
        self._offsets = np.zeros(1025, np.int64)
        self._data = np.zeros(16_384, np.uint8)

    def __len__(self) -> int:
        return len(self._map)

    def intern(self, texts: pl.Series) -> Ints:
        """Add texts to the pool; returns their hashes (n,) int64. A null hashes like the empty text."""
        data, offsets = text_buffers(texts)
        hashes = np.empty(len(texts), np.int64)
        hash_spans(data, offsets, _NO_SEED, hashes)
        self.learn(hashes, data, offsets[:-1], offsets[1:])
        return hashes

    def learn(
        self,
        hashes: Ints,
        data: Bytes,
        starts: Ints,
        ends: Ints,
    ) -> None:
        """Add the texts `data[starts[i]:ends[i]]` with the hashes `hashes[i]` to the pool."""
        with self._lock:
            known = self._map.get(hashes)
            if known.size == 0 or known.min() >= 0:
                return
            fresh = np.flatnonzero(known < 0)
            first = np.unique(hashes[fresh], return_index=True)[1]
            fresh = fresh[np.sort(first)]
            count = len(self._map)
            lengths = ends[fresh] - starts[fresh]
            self._offsets = _grown(self._offsets, count + len(fresh) + 1)
            self._offsets[count + 1 : count + len(fresh) + 1] = self._offsets[count] + np.cumsum(lengths)
            self._data = _grown(self._data, int(self._offsets[count + len(fresh)]))
            copy_spans(data, starts[fresh], ends[fresh], self._data, int(self._offsets[count]))
            self._map.get_or_add(hashes[fresh])  # last, so that a packer without the lock finds a whole text or none

    def texts(self, hashes: Ints) -> pl.Series:
        """The text of each hash, null for an unknown hash: (n,) -> String series (n,)."""
        with self._lock:
            rows = self._map.get(hashes)
            known = rows >= 0
            rows = np.where(known, rows, 0)
            starts = self._offsets[rows]
            ends = np.where(known, self._offsets[rows + 1], starts)
            data = self._data
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(ends - starts, out=offsets[1:])
        out = np.empty(int(offsets[-1]), np.uint8)
        copy_spans(data, starts, ends, out, 0)
        mask = pa.py_buffer(np.packbits(known, bitorder="little"))
        array = pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(out), mask)
        return pl.Series(array)

    def learn_lines(self, texts: TextLines, data: Bytes) -> None:
        """Add the texts that a kernel has read from `data` to the pool."""
        if texts.used[0]:
            hashes, starts, ends = np.ascontiguousarray(texts.lines[: texts.used[0]].T)
            self.learn(hashes, data, starts, ends)

    def arrays(self) -> Texts:
        """The pool's arrays for a kernel."""
        with self._lock:
            return plain(Texts(self._map.table, self._offsets, self._data))


POOL = TextPool()


def text_buffers(texts: pl.Series) -> tuple[Bytes, Ints]:
    """UTF-8 bytes of a String series, and their offsets (n + 1,): (data, offsets). A null is empty."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    if array.null_count:
        array = array.fill_null("")
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    edges = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1].copy()
    first, last = int(edges[0]), int(edges[-1])
    content = np.frombuffer(data, np.uint8)[first:last].copy() if last > first else np.zeros(0, np.uint8)
    return content, edges - first


def hash_text(values: Any) -> Ints:
    """XXH64 of the UTF-8 bytes of each text, seed 0, as int64: (n,) texts -> (n,). Text features hold these hashes.

    >>> hash_text(["tea"])
    array([4741855839676419641])
    """
    series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
    data, offsets = text_buffers(series.cast(pl.String))
    hashes = np.empty(len(series), np.int64)
    hash_spans(data, offsets, _NO_SEED, hashes)
    return hashes


def _grown(array: NDArray[Scalar], need: int) -> NDArray[Scalar]:
    """Return `array` if `need` elements fit, else a copy of at least twice its size."""
    if need <= len(array):
        return array
    grown = np.zeros(max(need, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown


@lean_kernel
def copy_spans(
    data: Bytes,
    starts: Ints,
    ends: Ints,
    out: Bytes,
    at: Int,
) -> None:
    """Copy `data[starts[i]:ends[i]]` for each i, one after the other, to `out[at:]`."""
    for i in range(starts.size):
        copy_bytes(data, starts[i], out, at, ends[i] - starts[i])
        at += ends[i] - starts[i]


@part
def read_text(data: Bytes, start: Int, stop: Int, texts: TextLines) -> tuple[Int, bool]:
    """Read the text `data[start:stop]`: (its hash, whether it is UTF-8).

    Adds it to `texts` for the pool, unless `texts` is full.
    """
    word, line = np.int64(xxh64(data, start, stop, np.uint64(0))), texts.used[0]
    if not is_utf8(data, int(start), int(stop)):
        return word, False
    if line < texts.lines.shape[0]:
        texts.lines[line, 0] = word
        texts.lines[line, 1] = start
        texts.lines[line, 2] = stop
        texts.used[0] += 1
    return word, True


@lean_kernel
def is_utf8(data: Bytes, start: int, end: int) -> bool:
    """Whether `data[start:end]` is well-formed UTF-8: no surrogates, no overlong forms (Unicode 16, table 3-7)."""
    i = start
    while i < end:
        first = data[i]
        if first < 0x80:
            i += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            low = 0xA0 if first == 0xE0 else 0x80
            high = 0x9F if first == 0xED else 0xBF
        elif 0xF0 <= first <= 0xF4:
            more = 3
            low = 0x90 if first == 0xF0 else 0x80
            high = 0x8F if first == 0xF4 else 0xBF
        else:
            return False
        if i + more >= end or not low <= data[i + 1] <= high:
            return False
        for j in range(i + 2, i + more + 1):
            if not 0x80 <= data[j] <= 0xBF:
                return False
        i += more + 1
    return True
