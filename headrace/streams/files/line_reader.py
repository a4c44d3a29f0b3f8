"""Reading the new lines of a file, after checking that the lines read before are unchanged.

|---- read before ----|---- new lines ----|- unfinished -|
0                   begin                                    a last line without its end is not an event yet
"""

from collections.abc import Collection, Generator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OffsetLostError, SourceError
from headrace.streams.files.finder import EventFile
from headrace.streams.files.lines import LineBlock, LineChain, iter_blocks, line_of, without_blank
from headrace.streams.files.reading import reading


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Lines that are not blank: payloads, their positions (n,), and the position after them.

    `is_end`: the file has no more lines. Then `unfinished` is a last line without its end, or None, and `is_blank`
    tells whether the whole file is white space.
    """

    payloads: list[bytes]
    positions: NDArray[np.int64]
    next_position: int
    is_end: bool = False
    unfinished: bytes | None = None
    is_blank: bool = False

    def __len__(self) -> int:
        return len(self.payloads)

    def cut(self, rows: int) -> tuple["Lines", "Lines | None"]:
        """Split into the first `rows` lines and the rest, which is None if there are no more."""
        if len(self) <= rows:
            return self, None
        first = Lines(self.payloads[:rows], self.positions[:rows], int(self.positions[rows]))
        return first, replace(self, payloads=self.payloads[rows:], positions=self.positions[rows:])


def iter_lines(file: EventFile, begin: int, known: Collection[int]) -> Generator[Lines]:
    """Yield the lines from position `begin` on, many at a time, at least one `Lines`; the last is at the file's end.

    `known` are all positions up to which readers have read the file.

    Raises:
        SourceError: the file cannot be read, or lines before one of the positions have changed.
        OffsetLostError: the file has fewer lines than were read.
    """
    unchecked = sorted({begin, *known})
    chain, end, is_blank_file, unfinished = LineChain(), 0, True, None
    lines = Lines([], np.zeros(0, np.int64), begin)
    with reading(file), file.local() as path, path.open("rb") as stream:
        for block in iter_blocks(stream):
            if block.is_unfinished:
                unfinished = block.data.rstrip(b"\n")
                break
            positions = chain.positions(block)
            end = block.end
            while unchecked and line_of(unchecked[0]) <= end:
                _require_same(file, unchecked.pop(0), positions, block.first)
            is_blank_file = is_blank_file and block.data.isspace()
            if end > line_of(begin):
                if len(lines):
                    yield lines
                lines = _after(block, positions, max(line_of(begin) - block.first, 0))
    if unchecked and unchecked[-1]:
        raise OffsetLostError(
            f"file {file.url} has {end:,} lines, but {line_of(unchecked[-1]):,} were read from it before: give a "
            "changed file a new name, or start a fresh store"
        )
    yield replace(lines, is_end=True, unfinished=unfinished, is_blank=is_blank_file and unfinished is None)


def _after(block: LineBlock, positions: NDArray[np.int64], skipped: int) -> Lines:
    """Lines of a block that are not blank, without its first `skipped` lines."""
    payloads, kept = without_blank(block.lines[skipped:] if skipped else block.lines)
    places = positions[skipped:-1]
    return Lines(payloads, places if kept is None else places[kept], int(positions[-1]))


def _require_same(file: EventFile, position: int, positions: NDArray[np.int64], first: int) -> None:
    """Check that a position still matches its line in the file.

    Raises:
        SourceError: the lines before it have changed.
    """
    line = line_of(position)
    if positions[line - first] != position:
        raise SourceError(
            f"file {file.url} begins as it did, but of its first {line:,} lines, which were read before, some have "
            "changed since: nobody can say which rows are new. Give new content a new file name, or start a fresh "
            "store; new lines may only be added at the end"
        )
