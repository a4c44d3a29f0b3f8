"""Many byte strings in one buffer, since creating an object for each would cost more than the work done on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spans(Sequence[bytes]):
    """n byte strings: string i is `data[offsets[i]:offsets[i + 1]]`, offsets (n + 1,). Access creates bytes objects.

    >>> spans = Spans(np.frombuffer(b"teajam", np.uint8), np.array([0, 3, 6]))
    >>> list(spans), spans[-1], spans.part(1, 2)[0]
    ([b'tea', b'jam'], b'jam', b'jam')
    """

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.data, self.offsets = data, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __iter__(self) -> Iterator[bytes]:
        edges = self.offsets.tolist()
        base = edges[0]
        packed = self.data[base : edges[-1]].tobytes()
        return (packed[start - base : end - base] for start, end in pairwise(edges))

    def part(self, begin: int, end: int) -> "Spans":
        """The strings [begin, end), in the same buffer."""
        return Spans(self.data, self.offsets[begin : end + 1])


def spans_of(texts: Sequence[bytes]) -> Spans:
    """Convert byte strings to spans; `Spans`, and sequences with a method `spans`, are not copied one by one."""
    if isinstance(texts, Spans):
        return texts
    as_spans: Callable[[], Spans] | None = getattr(texts, "spans", None)
    if as_spans is not None:
        return as_spans()
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return Spans(np.frombuffer(bytearray().join(texts), np.uint8), offsets)


@dataclass(frozen=True, slots=True)
class Values:
    """n values: value i is `data[starts[i]:ends[i]]`, or missing if `starts[i]` is -1; starts, ends (n,)."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def values_of(blobs: Sequence[bytes | None]) -> Values:
    """Convert byte strings to values; None is a missing value."""
    lengths = np.array([-1 if blob is None else len(blob) for blob in blobs], np.int64)
    ends = np.cumsum(np.maximum(lengths, 0))
    starts = np.where(lengths < 0, -1, ends - lengths)
    return Values(np.frombuffer(bytearray().join(blob for blob in blobs if blob), np.uint8), starts, ends)
