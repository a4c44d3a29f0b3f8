"""Rows that wait, by slices of event time: in memory up to a limit, others in Arrow files.

    slice 41   [frame][file]          a file holds rows of one slice, is written once and never changed
    slice 42   [file][file][frame]    a frame may have a file as well: it is in memory only to be read faster

Two ways to use files. `spill` is scratch space: what is beyond the limits goes there, and `capture` writes all rows.
`keep_in` is a folder that outlives the process: rows are written there, in a thread, as they come, so a checkpoint has
only the last of them to write and names the files; `load` reads none of them. A file of rows that were taken is deleted
once no checkpoint can name it: when the checkpoint after the next is captured.

Cost of a checkpoint with `keep_in`: the rows since the last one, and in each slice that they are of one file of less
than `FULL_ROWS`, which is merged with them; so a slice has at most rows / FULL_ROWS + 1 files, however often it is
saved.
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
"""A file of fewer rows is merged with the rows that follow it."""
BYTES_MAX = 256 << 20
"""Rows in memory, beside the limit of their number."""


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
        """Whether its file could not be written; then the rows are still in memory."""
        return self.written is not None and self.written.done() and self.written.exception() is not None

    def wait(self) -> None:
        """Return once the file is whole."""
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
    """See the module. Used by one thread; what `capture` returns may run in another.

    Args:
        name: of the rows in messages and checkpoints, such as "requests".
        schema: of the rows, column -> type.
        time_us: the rows' event time in microseconds.
        step_us: microseconds of event time of a slice.
        rows_max, bytes_max: rows in memory; more are spilled.
        write_rows: rows without a file at which `keep_in` writes them, before a checkpoint asks for it.
        spill: folder for rows beyond the limits; None: a temporary one.
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
        self._owner = secrets.token_hex(4)  # names of files of another process differ
        self._in_memory = [0, 0]  # rows, bytes
        self._unwritten = 0
        self._rows = 0
        self._named: set[str] = set()  # files that the newest checkpoint names
        self._named_before: set[str] = set()  # and that the one before it did
        self._writer: ThreadPoolExecutor | None = None

    @property
    def rows(self) -> int:
        """All rows."""
        return self._rows

    @property
    def rows_in_memory(self) -> int:
        """Rows that are in memory."""
        return self._in_memory[0]

    def keep_in(self, folder: Path) -> None:
        """Keep rows in files of a folder of their own that outlives the process; before the first row."""
        self._folder, self._is_kept = folder, True
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"headrace-{self._name}")
        weakref.finalize(self, self._writer.shutdown, wait=False)

    def add(self, frame: pl.DataFrame) -> int:
        """Take in rows; returns how many left memory for files."""
        slices = frame.with_columns((self._time_us // self._step_us).alias("__slice"))
        for (number,), rows in slices.partition_by("__slice", as_dict=True, include_key=False).items():
            self._append(int(number), _Part.of(rows))
        if self._is_kept and self._unwritten >= self._write_rows:
            self._write_all()
        is_over = any(used > most for used, most in zip(self._in_memory, self._limits, strict=True))
        return self._spill_latest() if is_over else 0

    def rows_of(self, number: int) -> int:
        """Rows of one slice."""
        return sum(part.rows for part in self._slices.get(number, ()))

    def first(self) -> int | None:
        """Number of the first slice."""
        return min(self._slices, default=None)

    def due(self, before: int | None) -> list[int]:
        """Numbers of the slices before one, or of all, ascending."""
        return sorted(number for number in self._slices if before is None or number < before)

    def read(self, numbers: Sequence[int] | None = None) -> pl.DataFrame:
        """The rows of some slices, or of all, slice by slice."""
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
        """Take the present state; what is returned writes it into a checkpoint's folder, and returns facts for `load`.

        The checkpoint captured before this one must be on disk, unless `not_written` was called.
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
        """Say that what was captured last did not get to disk: the files of the checkpoint before it must stay."""
        self._named |= self._named_before

    def load(self, source: Path, facts: Mapping[str, Any]) -> None:
        """Take over what `capture` wrote; rows in files stay there.

        Raises:
            SnapshotError: a file is missing, or not as it was saved.
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
        """Facts of parts in kept files, once all of them are on disk."""
        files = []
        for number, part in parts:
            assert part.path is not None
            if (written := part.written) is not None:
                written.result()
            files.append([part.path.name, number, part.rows, part.path.stat().st_size])
        if files and self._folder is not None:
            sync(self._folder)  # the names, too, are on disk before a checkpoint names them
        return {"files": files}

    def _spill_latest(self) -> int:
        """Drop the rows that are due last from memory, until it is half full; returns their number."""
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
        """Write the rows of a slice that have no file into one, with those of a file that is not full."""
        parts = self._slices[number]
        for part in parts:
            if part.has_failed:  # as on a full disk, which may have room by now
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
        """Delete kept files that neither the state nor a checkpoint names."""
        if self._is_kept and self._folder is not None:
            for path in self._folder.glob("*.arrow"):
                if path.name not in names:
                    path.unlink()


def _write_whole(rows: pl.DataFrame, path: Path) -> dict[str, Any]:
    rows.write_ipc(path)
    return {}


def _write_synced(frame: pl.DataFrame, path: Path) -> None:
    """Write a file and flush it to disk. Runs in the thread of the writer."""
    with path.open("wb") as file:
        frame.write_ipc(file)
        file.flush()
        os.fsync(file.fileno())
