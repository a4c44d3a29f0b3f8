"""RowsByTime: waiting rows by slices of event time, in memory up to a limit, other rows in Arrow files.

    slice 41   [frame][file]          a file has rows of one slice, is written once and never changed
    slice 42   [file][file][frame]    a frame may also have a file; then it is in memory only for faster reads

There are two ways to use files. `spill` is scratch space for rows beyond the limits, and `capture` writes all rows.
`keep_in` is a persistent folder: a thread writes rows there as they arrive, so a checkpoint only writes the last rows
and names the files; `load` reads none of them. A file of removed rows is deleted when no checkpoint can name it any
more, which is when the checkpoint after the next is captured.

A checkpoint with `keep_in` writes the rows since the last checkpoint. In each of their slices it also rewrites at most
one file of fewer than `FULL_ROWS` rows, merged with them. So a slice has at most rows / FULL_ROWS + 1 files, however
often it is saved.
"""

import itertools
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from headrace.atomic import sync
from headrace.errors import SnapshotError

FULL_ROWS = 4_096
"""A file with fewer rows is merged with later rows."""
BYTES_MAX = 256 << 20
"""Largest size of the rows in memory, in addition to the limit of their number."""


@dataclass(slots=True, eq=False)
class _Part:
    """Rows of one slice: in memory, in a file, or both."""

    rows: int
    frame: pl.DataFrame | None = None
    path: Path | None = None
    written: "Future[None] | None" = None
    bytes: int = 0  # of the frame

    @staticmethod
    def of(frame: pl.DataFrame, path: Path | None = None) -> "_Part":
        return _Part(frame.height, frame, path, bytes=int(frame.estimated_size()))

    @property
    def has_failed(self) -> bool:
        """Whether writing the file failed; the rows are still in memory then."""
        return self.written is not None and self.written.done() and self.written.exception() is not None

    def wait(self) -> None:
        """Wait until the file is complete."""
        if self.written is not None:
            self.written.result()
            self.written = None

    def read(self) -> pl.DataFrame:
        if self.frame is not None:
            return self.frame
        assert self.path is not None
        self.wait()
        try:
            return pl.read_ipc(self.path)
        except (OSError, pl.exceptions.PolarsError) as exc:
            raise SnapshotError(f"waiting rows in {self.path}: cannot be read: {exc}") from exc


class RowsByTime:
    """Waiting rows by time; see the module docstring. Not thread-safe, but `capture`'s result may run in any thread.

    Args:
        name: name of the rows in messages and checkpoints, such as "requests".
        schema: column -> type of the rows.
        time_us: expression for the rows' event time in microseconds.
        step_us: length of a slice in microseconds of event time.
        rows_max, bytes_max: limits of the rows in memory; more are spilled.
        write_rows: number of rows without a file at which `keep_in` writes them before the next checkpoint.
        spill: folder for rows beyond the limits; None: a temporary folder.
    """

    def __init__(
        self,
        name: str,
        schema: Mapping[str, Any],
        time_us: pl.Expr,
        step_us: int,
        *,
        rows_max: int,
        bytes_max: int = BYTES_MAX,
        write_rows: int = 65_536,
        spill: Path | None = None,
    ) -> None:
        self._name = name
        self._schema = dict(schema)
        self._time_us = time_us
        self._step_us = step_us
        self._limits = (rows_max, bytes_max)
        self._write_rows = write_rows
        self._folder = spill
        self._is_kept = False
        self._slices: dict[int, list[_Part]] = {}  # event time // step -> rows
        self._number = itertools.count()
        self._owner = secrets.token_hex(4)  # makes file names unique among processes
        self._in_memory = [0, 0]  # rows, bytes
        self._unwritten = 0
        self._rows = 0
        self._named: set[str] = set()  # files named by the newest checkpoint
        self._named_before: set[str] = set()  # files named by the checkpoint before it
        self._writer: ThreadPoolExecutor | None = None

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return self._rows

    @property
    def rows_in_memory(self) -> int:
        """Number of rows in memory."""
        return self._in_memory[0]

    def keep_in(self, folder: Path) -> None:
        """Keep rows in files of a persistent folder, used by no others. Call it before the first row."""
        self._folder, self._is_kept = folder, True
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"headrace-{self._name}")
        weakref.finalize(self, self._writer.shutdown, wait=False)

    def add(self, frame: pl.DataFrame) -> int:
        """Add rows; returns the number of rows moved from memory to files."""
        slices = frame.with_columns((self._time_us // self._step_us).alias("__slice"))
        for (number,), rows in slices.partition_by("__slice", as_dict=True, include_key=False).items():
            self._append(int(number), _Part.of(rows))
        if self._is_kept and self._unwritten >= self._write_rows:
            self._write_all()
        is_over = any(used > most for used, most in zip(self._in_memory, self._limits, strict=True))
        return self._spill_latest() if is_over else 0

    def rows_of(self, number: int) -> int:
        """Number of rows of one slice."""
        return sum(part.rows for part in self._slices.get(number, ()))

    def first(self) -> int | None:
        """Number of the first slice."""
        return min(self._slices, default=None)

    def due(self, before: int | None) -> list[int]:
        """Numbers of the slices before number `before`, or of all, ascending."""
        return sorted(number for number in self._slices if before is None or number < before)

    def read(self, numbers: Sequence[int] | None = None) -> pl.DataFrame:
        """Rows of some slices, or of all, slice by slice."""
        chosen = sorted(self._slices) if numbers is None else [n for n in numbers if n in self._slices]
        frames = [part.read() for number in chosen for part in self._slices[number]]
        return pl.concat([pl.DataFrame(schema=self._schema), *frames])

    def take(self, numbers: Sequence[int]) -> pl.DataFrame:
        """Remove and return the rows of some slices, in no order."""
        rows = self.read(numbers)
        self.drop(numbers)
        return rows

    def drop(self, numbers: Sequence[int]) -> None:
        """Remove the rows of some slices."""
        for number in numbers:
            for part in self._slices.pop(number, ()):
                self._rows -= part.rows
                self._unwritten -= 0 if part.path else part.rows
                self._forget_frame(part)
                if part.path is not None and not self._is_kept:
                    part.path.unlink()

    def capture(self) -> Callable[[Path], dict[str, Any]]:
        """Capture the state; returns a function that writes it into a checkpoint's folder and returns facts for `load`.

        The previously captured checkpoint must be on disk, unless `not_written` was called.
        """
        if not self._is_kept:
            rows = self.read()
            return lambda target: _write_whole(rows, target / f"{self._name}.arrow")
        self._write_all()
        parts = [(number, part) for number, parts in self._slices.items() for part in parts]
        names = {part.path.name for _, part in parts if part.path is not None}
        self._delete_others(self._named | names)
        self._named_before, self._named = self._named, names
        return lambda _: self._facts(parts)

    def not_written(self) -> None:
        """Report that the last captured state was not written, so that the previous checkpoint's files must stay."""
        self._named |= self._named_before

    def load(self, source: Path, facts: Mapping[str, Any]) -> None:
        """Load what `capture` wrote; rows in kept files stay there.

        Raises:
            SnapshotError: a file is missing, or differs from what was saved.
        """
        self._slices, self._in_memory, self._unwritten, self._rows = {}, [0, 0], 0, 0
        for name, number, rows, size in facts.get("files", ()):
            path = (self._folder or source) / name
            if not path.is_file() or path.stat().st_size != size:
                raise SnapshotError(
                    f"waiting {self._name} in {path}: missing or damaged; restore it, or delete the state"
                )
            self._append(number, _Part(rows, path=path))
            self._named.add(name)
        self._delete_others(self._named)
        whole = source / f"{self._name}.arrow"
        if whole.is_file() and (rows := pl.read_ipc(whole.read_bytes())).height:
            for some in rows.iter_slices(self._write_rows):
                self.add(some)

    def _append(self, number: int, part: _Part) -> None:
        self._slices.setdefault(number, []).append(part)
        self._rows += part.rows
        self._unwritten += 0 if part.path else part.rows
        if part.frame is not None:
            self._in_memory[0] += part.rows
            self._in_memory[1] += part.bytes

    def _forget_frame(self, part: _Part) -> None:
        if part.frame is not None:
            self._in_memory[0] -= part.rows
            self._in_memory[1] -= part.bytes
            part.frame = None

    def _facts(self, parts: Sequence[tuple[int, _Part]]) -> dict[str, Any]:
        """Facts of the parts in kept files; waits until all of these are on disk."""
        files = []
        for number, part in parts:
            assert part.path is not None
            if (written := part.written) is not None:
                written.result()
            files.append([part.path.name, number, part.rows, part.path.stat().st_size])
        if files and self._folder is not None:
            sync(self._folder)  # file names, too, must be on disk before a checkpoint names them
        return {"files": files}

    def _spill_latest(self) -> int:
        """Drop the rows that are due last from memory until it is half full; returns their number."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"headrace-{self._name}-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        spilled = 0
        for number in sorted(self._slices, reverse=True):
            if all(used <= most // 2 for used, most in zip(self._in_memory, self._limits, strict=True)):
                break
            self._write(number)
            for part in self._slices[number]:
                if part.frame is not None:
                    part.wait()
                    self._forget_frame(part)
                    spilled += part.rows
        return spilled

    def _write_all(self) -> None:
        for number in self._slices:
            self._write(number)

    def _write(self, number: int) -> None:
        """Write the rows of a slice without a file to one file, merged with a file that is not full."""
        parts = self._slices[number]
        for part in parts:
            if part.has_failed:  # for example on a full disk, which may have room now
                assert part.frame is not None
                part.path, part.written = None, None
                self._unwritten += part.rows
        if all(part.path is not None for part in parts):
            return
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        merged = [part for part in parts if part.path is None or (self._is_kept and part.rows < FULL_ROWS)]
        frame = pl.concat([part.read() for part in merged])
        path = self._folder / f"{number}-{next(self._number)}-{self._owner}.arrow"
        written = None
        if self._writer is None:
            frame.write_ipc(path)
        else:
            written = self._writer.submit(_write_synced, frame, path)
        for part in merged:
            self._rows -= part.rows
            self._unwritten -= 0 if part.path else part.rows
            self._forget_frame(part)
        whole = _Part.of(frame, path)
        whole.written = written
        self._slices[number] = [part for part in parts if part not in merged]
        self._append(number, whole)

    def _delete_others(self, names: set[str]) -> None:
        """Delete kept files that are not in `names`."""
        if self._is_kept and self._folder is not None:
            for path in self._folder.glob("*.arrow"):
                if path.name not in names:
                    path.unlink()


def _write_whole(rows: pl.DataFrame, path: Path) -> dict[str, Any]:
    rows.write_ipc(path)
    return {}


def _write_synced(frame: pl.DataFrame, path: Path) -> None:
    """Write a file and flush it to disk. Runs in the writer's thread."""
    with path.open("wb") as file:
        frame.write_ipc(file)
        file.flush()
        os.fsync(file.fileno())
