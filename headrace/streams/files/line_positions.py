"""Positions in a file of lines: one number with the line and a hash of all lines before it.

    position = number of the line << 32 | hash of all lines before it (32 bits)

Positions are ordered as lines are, so they are offsets like any others: those beside a shard's records say up to which
line it has come, and what that part of the file held. A file that no longer holds it gives another hash at that line.
"""

import re

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.hashing import chain_lines
from headrace.streams.files.lines import LineBlock

_SHIFT = 32
_MASK = (1 << _SHIFT) - 1
_OF_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?@[0-9a-f]+$", re.IGNORECASE)


def line_of(position: int) -> int:
    """Number, from 0, of the line that a position is before."""
    return position >> _SHIFT


def row_numbers(partition: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of rows (n,) from their offsets, for people: in a partition of lines those of the lines.

    >>> row_numbers("clicks/a.jsonl@0f9a2c11", np.array([7 << 32 | 12])), row_numbers("clicks/0", np.array([12]))
    (array([7]), array([12]))
    """
    return offsets >> _SHIFT if _OF_LINES.search(partition) else offsets


class LineChain:
    """Positions of a file's lines, block by block from its start."""

    def __init__(self) -> None:
        self._state = 0

    def positions(self, block: LineBlock) -> NDArray[np.int64]:
        """Position before each line of the next block, and after its last: (lines + 1,)."""
        out = np.empty(len(block.lines) + 1, np.int64)
        self._state = int(chain_lines(np.frombuffer(block.data, np.uint8), np.uint64(self._state), out))
        return (np.arange(block.first, block.end + 1) << _SHIFT) | (out & _MASK)
