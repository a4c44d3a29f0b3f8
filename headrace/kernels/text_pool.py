"""The process's texts by their 64-bit hash: lists hold hashes, answers and records hold the text.

Append-only: a text that was met once stays for the life of the process, so memory grows with the vocabulary of the list
features, not with the number of events. Thread-safe.
"""

import threading
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel
from headrace.kernels.hashing import hash_spans
from headrace.kernels.id_map import IdMap

_NO_SEED = np.uint64(0)
Scalar = TypeVar("Scalar", bound=np.generic)


class TextPool:
    """Hash to text and back.

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
        """Hash of each text, (n,) int64, and remember them; a null hashes as the empty text."""
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
        """Remember that `hashes[i]` is the hash of `data[starts[i]:ends[i]]`."""
        with self._lock:
            known = self._map.get(hashes)
            if known.size == 0 or known.min() >= 0:
                return
            fresh = np.flatnonzero(known < 0)
            first = np.unique(hashes[fresh], return_index=True)[1]
            fresh = fresh[np.sort(first)]
            count = len(self._map)
            lengths = ends[fresh] - starts[fresh]
            self._offsets = _room(self._offsets, count + len(fresh) + 1)
            self._offsets[count + 1 : count + len(fresh) + 1] = self._offsets[count] + np.cumsum(lengths)
            self._data = _room(self._data, int(self._offsets[count + len(fresh)]))
            copy_spans(data, starts[fresh], ends[fresh], self._data, int(self._offsets[count]))
            self._map.get_or_add(hashes[fresh])  # last: a packer that reads without the lock finds a text or nothing

    def texts(self, hashes: Ints) -> pl.Series:
        """The text of each hash; null where it was never met. (n,) -> String series (n,)."""
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

    def arrays(self) -> tuple[Ints, Ints, Bytes]:
        """(table, offsets, data) for a kernel: text of row r is `data[offsets[r]:offsets[r + 1]]`."""
        with self._lock:
            return self._map.table, self._offsets, self._data


POOL = TextPool()


def text_buffers(texts: pl.Series) -> tuple[Bytes, Ints]:
    """UTF-8 bytes of a String series and where each text begins: data, offsets (n + 1,); a null is empty."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    if array.null_count:
        array = array.fill_null("")
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    found = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1].copy()
    first, last = int(found[0]), int(found[-1])
    content = np.frombuffer(data, np.uint8)[first:last].copy() if last > first else np.zeros(0, np.uint8)
    return content, found - first


def hash_text(values: Any) -> Ints:
    """XXH64 of the UTF-8 bytes of each text, seed 0, as int64: what list features of text hold. (n,) texts -> (n,).

    >>> hash_text(["tea"])
    array([4741855839676419641])
    """
    series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
    data, offsets = text_buffers(series.cast(pl.String))
    hashes = np.empty(len(series), np.int64)
    hash_spans(data, offsets, _NO_SEED, hashes)
    return hashes


def _room(array: NDArray[Scalar], need: int) -> NDArray[Scalar]:
    """`array`, or a copy of at least twice its size, so that `need` elements fit."""
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
    """Write `data[starts[i]:ends[i]]` for every i, one after the other, from `out[at]` on."""
    for i in range(starts.size):
        copy_bytes(data, starts[i], out, at, ends[i] - starts[i])
        at += ends[i] - starts[i]
