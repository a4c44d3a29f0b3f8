"""External sort of frames by an int64 key: sorted runs on disk, and a merge that holds few blocks in memory.

    added rows --(rows_max)--> sort --> run 0:  [block][block][block]...     each block knows its least and greatest key
                                        run 1:  [block][block]...
    merge: open blocks by least key until enough rows are in memory; output rows below the least key of the rest

    key   0----------cut------------->        the part of an open block above the cut waits for the next stretch
    run 0 [====|====] [====]
    run 1   [==|======]

Rows of equal key keep the order in which they were added, as in a stable sort. They are output together, so they must
fit in memory. All runs are merged in one pass: with R rows at a time and n runs, n blocks of R/64 rows are in memory.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

Name = TypeVar("Name", bound=Hashable)

BLOCKS_A_RUN = 64
"""Number of blocks in a full run; a merge holds one block of each run in memory."""
_BLOCK_ROWS = (256, 16_384)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows that are read on demand, with keys in [low, high]; `read` may return them unsorted."""

    low: int
    high: int
    rows: int
    read: Callable[[], pl.DataFrame]


class Sorter:
    """Collects frames: up to `rows_max` rows in memory, the rest in `folder()` as sorted runs."""

    def __init__(self, key: pl.Expr, rows_max: int, folder: Callable[[], Path]) -> None:
        self._key = key
        self._rows_max = rows_max
        self._folder = folder
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._runs = 0
        self._blocks: list[Block] = []

    def add(self, frame: pl.DataFrame) -> None:
        """Add the next rows."""
        for start in range(0, frame.height, self._rows_max):
            part = frame[start : start + self._rows_max]
            if self._waiting_rows + part.height > self._rows_max:
                self._write_run()
            self._waiting.append(part)
            self._waiting_rows += part.height

    def blocks(self) -> list[Block]:
        """Return all rows: one block in memory, or blocks of runs on disk. No more rows can be added afterwards."""
        if not self._blocks:
            return memory_block(pl.concat(self._waiting), self._key) if self._waiting else []
        self._write_run()
        return self._blocks

    def _write_run(self) -> None:
        if not self._waiting:
            return
        frame, self._waiting, self._waiting_rows = pl.concat(self._waiting).sort(self._key, maintain_order=True), [], 0
        path = self._folder() / f"run{self._runs}.arrow"
        self._runs += 1
        low, high = _BLOCK_ROWS
        self._blocks += write_blocks(frame, self._key, path, max(low, min(high, self._rows_max // BLOCKS_A_RUN)))


def memory_block(frame: pl.DataFrame, key: pl.Expr) -> list[Block]:
    """Wrap a frame as one block, or none if it is empty."""
    if frame.is_empty():
        return []
    low, high = frame.select(key.min().alias("low"), key.max().alias("high")).row(0)
    return [Block(low, high, frame.height, lambda: frame)]


def write_blocks(frame: pl.DataFrame, key: pl.Expr, path: Path, rows: int) -> list[Block]:
    """Write a sorted frame as an Arrow file of blocks of `rows` rows each."""
    keys = keys_of(frame, key)
    batches = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    blocks = []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batches.schema, options=options) as writer:
        for index, start in enumerate(range(0, frame.height, rows)):
            end = min(start + rows, frame.height)
            writer.write_batch(batches[start:end].to_batches()[0])
            blocks.append(Block(int(keys[start]), int(keys[end - 1]), end - start, partial(read_block, path, index)))
    return blocks


def read_block(path: Path, index: int) -> pl.DataFrame:
    """Read one block of a file that `write_blocks` wrote."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        frame = pl.from_arrow(reader.get_batch(index))
    assert isinstance(frame, pl.DataFrame)
    return frame


@dataclass(slots=True)
class _Open:
    """The remaining rows of an open block, sorted, and their keys."""

    frame: pl.DataFrame
    keys: NDArray[np.int64]


def merged(
    blocks: Mapping[Name, Sequence[Block]], keys: Mapping[Name, pl.Expr], rows: int
) -> Iterator[tuple[dict[Name, pl.DataFrame], int | None]]:
    """Merge tables by key into stretches: sorted frames by table, and the key before which the stretch ends.

    A stretch has about `rows` rows of all tables together; tables without rows in it are omitted. The last stretch, of
    which there is always one, ends at None.
    """
    waiting = sorted(
        ((block.low, place, name) for name, listed in blocks.items() for place, block in enumerate(listed)),
        key=lambda entry: entry[:2],
        reverse=True,
    )
    opened: dict[Name, dict[int, _Open]] = {name: {} for name in blocks}
    rows_open = 0
    while True:
        is_first = True
        while waiting and (is_first or rows_open + blocks[waiting[-1][2]][waiting[-1][1]].rows <= rows):
            _, place, name = waiting.pop()
            opened[name][place] = _sorted(blocks[name][place].read(), keys[name])
            rows_open += len(opened[name][place].keys)
            is_first = False
        cut = waiting[-1][0] if waiting else None
        ready = {name: _below(parts, keys[name], cut) for name, parts in opened.items()}
        stretch = {name: frame for name, frame in ready.items() if frame is not None}
        rows_open -= sum(frame.height for frame in stretch.values())
        yield stretch, cut
        if cut is None:
            return


def overlap(blocks: Sequence[Block]) -> int:
    """Return the most rows that a merge of the blocks holds at once, in addition to those of the stretch."""
    edges = sorted(
        [(block.low, 0, block.rows) for block in blocks] + [(block.high, 1, -block.rows) for block in blocks]
    )
    return int(np.cumsum([rows for _, _, rows in edges]).max(initial=0))


def keys_of(frame: pl.DataFrame, key: pl.Expr) -> NDArray[np.int64]:
    """Keys of a frame's rows: (n,)."""
    return frame.select(key).to_series().to_numpy(writable=True)


def _sorted(frame: pl.DataFrame, key: pl.Expr) -> _Open:
    keys = keys_of(frame, key)
    if not (keys[1:] >= keys[:-1]).all():
        frame = frame.sort(key, maintain_order=True)
        keys = keys_of(frame, key)
    return _Open(frame, keys)


def _below(parts: dict[int, _Open], key: pl.Expr, cut: int | None) -> pl.DataFrame | None:
    """Remove the rows below `cut` from open blocks and return them in order; empty blocks are dropped."""
    taken = []
    for place in sorted(parts):
        part = parts[place]
        end = len(part.keys) if cut is None else int(np.searchsorted(part.keys, cut, "left"))
        if end:
            taken.append(part.frame[:end])
        if end == len(part.keys):
            del parts[place]
        else:
            parts[place] = _Open(part.frame[end:], part.keys[end:])
    if not taken:
        return None
    return taken[0] if len(taken) == 1 else _sorted(pl.concat(taken), key).frame
