"""Requests whose label window is open, by slices of event time: in memory up to a limit, others in Arrow files.

    slice 41   [frame][file]          a file holds rows of one slice, is written once and never changed
    slice 42   [file][file][frame]    a frame may have a file as well: it is in memory only to be read faster

Two ways to use files. `spill` is scratch space: what is beyond the limit goes there, and `save` writes all requests.
`keep_in` is a folder that outlives the process: rows are written there, in a thread, as they come, so `save` has only
the last of them to write and names the files; `load` reads none of them. A file of taken requests is deleted once no
checkpoint can name it: at the save after the next.

Cost of a save with `keep_in`: at most `SEGMENT_ROWS` requests to write, however many are open.
"""

import itertools
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import structlog

from headrace.atomic import sync
from headrace.errors import SnapshotError
from headrace.schemas import EventSpec

log = structlog.get_logger(__name__)

SEGMENT_ROWS = 8_192
"""Requests that wait in memory for a file of their own."""
FILE = "requests.arrow"


@dataclass(slots=True, eq=False)
class _Part:
    """Requests of one slice: in memory, in a file, or both."""

    rows: int
    frame: pl.DataFrame | None = None
    path: Path | None = None
    written: "Future[None] | None" = None

    def read(self) -> pl.DataFrame:
        if self.frame is not None:
            return self.frame
        assert self.path is not None
        try:
            return pl.read_ipc(self.path)
        except (OSError, pl.exceptions.PolarsError) as exc:
            raise SnapshotError(f"open requests in {self.path}: cannot be read: {exc}") from exc


class OpenRequests:
    """See the module. Used by one thread.

    Args:
        request: the event of the requests.
        step_us: microseconds of event time of a slice.
        rows_max: requests in memory.
        spill: folder for requests beyond them; None: a temporary one.
    """

    def __init__(self, request: EventSpec, step_us: int, *, rows_max: int, spill: Path | None) -> None:
        self._request = request
        self._step_us = step_us
        self._rows_max = rows_max
        self._folder = spill
        self._is_kept = False
        self._slices: dict[int, list[_Part]] = {}  # event time // step -> requests
        self._number = itertools.count()
        self._owner = secrets.token_hex(4)  # names of files of another process differ
        self._in_memory = 0
        self._unwritten = 0
        self._named: set[str] = set()  # files that the newest checkpoint names
        self._writer: ThreadPoolExecutor | None = None

    @property
    def rows(self) -> int:
        """All open requests."""
        return sum(part.rows for part in self._parts())

    @property
    def rows_in_memory(self) -> int:
        """Open requests that are in memory."""
        return self._in_memory

    def keep_in(self, folder: Path) -> None:
        """Keep requests in files of a folder that outlives the process; before the first request."""
        self._folder, self._is_kept = folder, True
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace-requests")
        weakref.finalize(self, self._writer.shutdown, wait=False)

    def add(self, frame: pl.DataFrame) -> int:
        """Take in requests; returns how many left memory for files."""
        times_us = pl.col(self._request.time).dt.epoch("us")
        slices = frame.with_columns((times_us // self._step_us).alias("__slice"))
        for (number,), rows in slices.partition_by("__slice", as_dict=True, include_key=False).items():
            self._slices.setdefault(int(number), []).append(_Part(rows.height, rows))
        self._in_memory += frame.height
        self._unwritten += frame.height
        if self._is_kept and self._unwritten >= SEGMENT_ROWS:
            self._write_all()
        return self._spill_latest() if self._in_memory > self._rows_max else 0

    def first(self) -> int | None:
        """Number of the first slice."""
        return min(self._slices, default=None)

    def due(self, before: int | None) -> list[int]:
        """Numbers of the slices before one, or of all, ascending."""
        return sorted(number for number in self._slices if before is None or number < before)

    def take(self, numbers: list[int]) -> pl.DataFrame:
        """Remove and return the requests of some slices, at least one, in no order."""
        frames = []
        for number in numbers:
            for part in self._slices.pop(number):
                if part.written is not None:
                    part.written.result()
                frames.append(part.read())
                if part.frame is not None:
                    self._in_memory -= part.rows
                    self._unwritten -= 0 if part.path else part.rows
                if part.path is not None and not self._is_kept:
                    part.path.unlink()
        return pl.concat(frames)

    def save(self, target: Path) -> dict[str, Any]:
        """Write what is not in kept files into the folder `target`; returns facts for `load`."""
        if not self._is_kept:
            empty = pl.DataFrame(schema={**self._request.polars, "appended_us": pl.Int64()})
            pl.concat([empty, *(part.read() for part in self._parts())]).write_ipc(target / FILE)
            return {}
        self._write_all()
        written = [part for part in self._parts() if part.written is not None]
        for part in written:
            assert part.written is not None
            part.written.result()
            part.written = None
        if written and self._folder is not None:
            sync(self._folder)  # the names, too, are on disk before a checkpoint names them
        files = [
            [part.path.name, number, part.rows, part.path.stat().st_size]
            for number, parts in self._slices.items()
            for part in parts
            if part.path is not None
        ]
        names = {str(name) for name, *_ in files}
        self._delete_others(self._named | names)
        self._named = names
        return {"request_files": files}

    def load(self, source: Path, facts: Mapping[str, Any]) -> None:
        """Take over what `save` wrote; requests in files stay there.

        Raises:
            SnapshotError: a file is missing, or not as it was saved.
        """
        self._slices, self._in_memory, self._unwritten = {}, 0, 0
        for name, number, rows, size in facts.get("request_files", ()):
            path = (self._folder or source) / name
            if not path.is_file() or path.stat().st_size != size:
                raise SnapshotError(f"open requests in {path}: missing or damaged; restore it, or delete the state")
            self._slices.setdefault(number, []).append(_Part(rows, path=path))
            self._named.add(name)
        self._delete_others(self._named)
        if (source / FILE).is_file() and (requests := pl.read_ipc(source / FILE)).height:
            self.add(requests)

    def _parts(self) -> Iterator[_Part]:
        return (part for parts in self._slices.values() for part in parts)

    def _spill_latest(self) -> int:
        """Drop the requests that are due last from memory, until it is half full; returns their number."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="headrace-joiner-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        spilled = 0
        for number in sorted(self._slices, reverse=True):
            if self._in_memory <= self._rows_max // 2:
                break
            self._write(number)
            for part in self._slices[number]:
                if part.frame is not None:
                    if part.written is not None:
                        part.written.result()
                    part.frame = None
                    self._in_memory -= part.rows
                    spilled += part.rows
        log.info("joiner_spilled", requests=spilled, folder=str(self._folder))
        return spilled

    def _write_all(self) -> None:
        for number in self._slices:
            self._write(number)

    def _write(self, number: int) -> None:
        """Write the requests of a slice that have no file into one."""
        parts = [part for part in self._slices[number] if part.path is None]
        if not parts:
            return
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        frame = pl.concat([part.read() for part in parts])
        path = self._folder / f"{number}-{next(self._number)}-{self._owner}.arrow"
        whole = _Part(frame.height, frame, path)
        if self._writer is None:
            frame.write_ipc(path)
        else:
            whole.written = self._writer.submit(_write_synced, frame, path)
        self._slices[number] = [*(part for part in self._slices[number] if part.path is not None), whole]
        self._unwritten -= frame.height

    def _delete_others(self, names: set[str]) -> None:
        """Delete kept files that neither the state nor a checkpoint names."""
        if self._is_kept and self._folder is not None:
            for path in self._folder.glob("*.arrow"):
                if path.name not in names:
                    path.unlink()


def _write_synced(frame: pl.DataFrame, path: Path) -> None:
    """Write a file and flush it to disk. Runs in the thread of the writer."""
    with path.open("wb") as file:
        frame.write_ipc(file)
        file.flush()
        os.fsync(file.fileno())
