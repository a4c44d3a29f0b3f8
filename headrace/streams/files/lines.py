r"""Text files with one JSON object per line, in blocks of whole lines, and positions in them.

A line ends at a newline; a single carriage return is white space inside it, as in JSON. A byte order mark before the
first line is skipped, UTF-16 is an error. The last line may lack its newline: it is whole if its object is closed.
Otherwise its writer has not finished it, or was interrupted, and it is *unfinished*: not an event yet.

    {"a": 1}\n{"a": 2}          two lines
    {"a": 1}\n{"a": 2           one line, and an unfinished one

A position is a number that combines the line number with a hash of all lines before the line:

    position = number of the line << 32 | hash of all lines before it (32 bits)

Positions have the order of lines, so they can be used as offsets. The position stored with a shard's records tells how
many lines it has read and what they contained. If these lines have changed, the hash at that line differs.
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
"""Bytes read at a time, about 30,000 events: a larger block leaves the CPU caches between two passes over it."""

_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_JSON_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
"""Strings, and outside of strings, brackets and a quotation mark that opens an unterminated string."""
_HASH_BITS = 32
_HASH_MASK = (1 << _HASH_BITS) - 1
_OF_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?@[0-9a-f]+$", re.IGNORECASE)
"""Ends of the partition names of files of JSON lines."""


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines of a file.

    `first` is the 0-based number of the first line; `lines` are without newlines and include blank lines; `data` is the
    whole text, each line ending with a newline. An unfinished line is in a separate block, the last one.
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
    """Yield the lines of a file from its start, about `block_bytes` at a time, at least one whole line.

    Raises:
        DecodeError: the file is UTF-16 or UTF-32.
        OSError: the file cannot be read.
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
    """Whether a line is empty or only white space."""
    return not line or line.isspace()


def without_blank(lines: list[bytes]) -> tuple[list[bytes], list[int] | None]:
    """The lines that are not blank, and their indexes; None if no line is blank."""
    kept = [line for line in lines if line.strip()]
    if len(kept) == len(lines):
        return lines, None
    return kept, [index for index, line in enumerate(lines) if not is_blank(line)]


def is_whole(line: bytes) -> bool:
    """Whether a line without a newline is complete: its JSON object is closed, so nothing can follow.

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
    """Check by its first bytes that a file is not UTF-16 or UTF-32.

    Raises:
        DecodeError: the file is UTF-16 or UTF-32.
    """
    if start.startswith(_WIDE_MARKS) or b"\0" in start[:4]:
        raise DecodeError("it is UTF-16 or UTF-32 text; write it as UTF-8, for example with `iconv -t UTF-8`")


def line_of(position: int) -> int:
    """The 0-based number of the line at a position."""
    return position >> _HASH_BITS


def row_numbers(partition: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers (n,) for messages, from offsets: in a file of JSON lines, the line numbers.

    >>> row_numbers("clicks/a.jsonl@0f9a2c11", np.array([7 << 32 | 12])), row_numbers("clicks/0", np.array([12]))
    (array([7]), array([12]))
    """
    return offsets >> _HASH_BITS if _OF_LINES.search(partition) else offsets


class LineChain:
    """The positions of a file's lines, computed block by block from its start."""

    def __init__(self) -> None:
        self._state = 0

    def positions(self, block: LineBlock) -> NDArray[np.int64]:
        """The position of each line of the next block, and after its last line: (lines + 1,)."""
        out = np.empty(len(block.lines) + 1, np.int64)
        self._state = int(chain_lines(np.frombuffer(block.data, np.uint8), np.uint64(self._state), out))
        return (np.arange(block.first, block.end + 1) << _HASH_BITS) | (out & _HASH_MASK)
