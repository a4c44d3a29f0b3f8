r"""Text files of one JSON object a line, in blocks of whole lines, and positions in them.

A line ends at a newline; a carriage return alone is white space inside it, as JSON has it. A byte order mark before the
first line is left out, UTF-16 is refused. The last line may lack its newline: it is whole if its object is closed, else
a writer is not done with it, or was cut off, and it is *unfinished*: no event yet.

    {"a": 1}\n{"a": 2}          two lines
    {"a": 1}\n{"a": 2           one line, and an unfinished one

A position is one number with the line and a hash of all lines before it:

    position = number of the line << 32 | hash of all lines before it (32 bits)

Positions are ordered as lines are, so they are offsets like any others: those beside a shard's records say up to which
line it has come, and what that part of the file held. A file that no longer holds it gives another hash at that line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.kernels.hashing import chain_lines

BLOCK_BYTES = 1 << 22
"""Bytes that are read at a time, some 30,000 events: what is larger falls out of the caches between two looks at it."""

_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_JSON_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
"""Strings, and outside of them brackets and a quotation mark that opens a string without an end."""
_HASH_BITS = 32
_HASH_MASK = (1 << _HASH_BITS) - 1
_OF_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?@[0-9a-f]+$", re.IGNORECASE)
"""Ends of the names of partitions that are files of lines."""


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Some lines of a file in order.

    `first` is the number of the first of them, from 0; `lines` are without newlines, blank ones included; `data` is all
    of it, each line with a newline at its end. Of an unfinished line there is a block of its own, the last.
    """

    first: int
    lines: list[bytes]
    data: bytes
    is_unfinished: bool = False

    @property
    def end(self) -> int:
        """Number of the line that follows."""
        return self.first + len(self.lines)


def iter_blocks(stream: IO[bytes], block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """The lines of a file from its start, about `block_bytes` at a time, at least one whole line.

    Raises:
        DecodeError: the file is UTF-16.
        OSError: it cannot be read.
    """
    first = 0
    while data := stream.read(block_bytes):
        if not first:
            refuse_wide(data)
            data = data.removeprefix(_UTF8_MARK)
        data = data if data.endswith(b"\n") else data + stream.readline()
        end = len(data) if data.endswith(b"\n") else data.rfind(b"\n") + 1
        last = data[end:]
        if is_whole(last):
            data, last = data + b"\n", b""
            end = len(data)
        lines = data[:end].split(b"\n")
        lines.pop()
        if lines:
            yield LineBlock(first, lines, data[:end])
            first += len(lines)
        if not is_blank(last):
            yield LineBlock(first, [last], last + b"\n", is_unfinished=True)


def is_blank(line: bytes) -> bool:
    """Whether a line holds no event, only white space."""
    return not line or line.isspace()


def without_blank(lines: list[bytes]) -> tuple[list[bytes], list[int] | None]:
    """The lines that are not blank, and their indexes; None if no line is blank."""
    kept = [line for line in lines if line.strip()]
    if len(kept) == len(lines):
        return lines, None
    return kept, [index for index, line in enumerate(lines) if not is_blank(line)]


def is_whole(line: bytes) -> bool:
    """Whether a line that lacks its newline is all there: its JSON object is closed, so nothing can follow.

    >>> is_whole(b'{"a": "}"}'), is_whole(b'{"a": {}'), is_whole(b'{"a": "}'), is_whole(b"12")
    (True, False, False, False)
    """
    depth = 0
    for match in _JSON_MARKS.finditer(line):
        mark = match.group()
        if mark == b'"':
            return False
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
    return depth == 0 and line.rstrip().endswith((b"}", b"]"))


def refuse_wide(start: bytes) -> None:
    """Return if a file that starts so is no UTF-16 and no UTF-32.

    Raises:
        DecodeError: it is.
    """
    if start.startswith(_WIDE_MARKS) or b"\0" in start[:4]:
        raise DecodeError("it is UTF-16 or UTF-32 text; write it as UTF-8, for example with `iconv -t UTF-8`")


def line_of(position: int) -> int:
    """Number, from 0, of the line that a position is before."""
    return position >> _HASH_BITS


def row_numbers(partition: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of rows (n,) from their offsets, for people: in a partition of lines those of the lines.

    >>> row_numbers("clicks/a.jsonl@0f9a2c11", np.array([7 << 32 | 12])), row_numbers("clicks/0", np.array([12]))
    (array([7]), array([12]))
    """
    return offsets >> _HASH_BITS if _OF_LINES.search(partition) else offsets


class LineChain:
    """Positions of a file's lines, block by block from its start."""

    def __init__(self) -> None:
        self._state = 0

    def positions(self, block: LineBlock) -> NDArray[np.int64]:
        """Position before each line of the next block, and after its last: (lines + 1,)."""
        out = np.empty(len(block.lines) + 1, np.int64)
        self._state = int(chain_lines(np.frombuffer(block.data, np.uint8), np.uint64(self._state), out))
        return (np.arange(block.first, block.end + 1) << _HASH_BITS) | (out & _HASH_MASK)
