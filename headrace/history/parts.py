"""One part of a replay into a file: the views of one entity, for the entities that hash to this part.

    <folder>/progress.json        time up to which it is done, and the files of answers so far
             answers<n>.arrow     answers by row of the spine
             records<n>/          the records at that time, to resume from
             log/                 the log sorted on disk

A part processes the log in order of time. At intervals it writes records and answers and then, by one rename, its
progress. Keys, times and request fields of its spine rows are in memory, other columns of the spine are not.
"""

import contextlib
import fcntl
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import orjson
import polars as pl

from headrace.atomic import write_file
from headrace.errors import ConfigError
from headrace.features.view import FeatureView, plan_of
from headrace.history.external_sort import Block, read_block, write_blocks
from headrace.history.log import Paths, Span, in_part, open_log
from headrace.history.replay import Replay, chunks
from headrace.history.spine import TIME, SpineFiles, SpineFormat, check_spine, spine_times
from headrace.schemas import Event

ROW = pl.col("row")
"""Row of the spine that an answer belongs to."""

_BLOCK_ROWS = 2_048
_PROGRESS = "progress.json"

Report: TypeAlias = Callable[[int, int, int | None], None]
"""Called with (part number, rows done, total rows) of events and spine rows; total is None while the log is sorted."""


class StoppedError(Exception):
    """A part was asked to stop; its progress is saved."""


@dataclass(frozen=True, slots=True)
class Part:
    """The work of one part. `place` numbers the parts of all groups of views."""

    place: int
    folder: Path
    views: tuple[type[FeatureView], ...]
    events: Mapping[type[Event], Paths]
    spine: Paths
    written: SpineFormat
    part: int
    parts: int
    memory_rows: int
    chunk_rows: int
    checkpoint_s: float


@dataclass(slots=True)
class Progress:
    """Progress of a part: done up to `cut_us`. `answers`: file, and (least row, greatest row, rows) of each block."""

    cut_us: int | None = None
    is_done: bool = False
    records: str | None = None
    answers: list[tuple[str, list[tuple[int, int, int]]]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "Progress":
        """Load the progress of a part; empty if it was never started."""
        path = folder / _PROGRESS
        return cls(**orjson.loads(path.read_bytes())) if path.is_file() else cls()

    def save(self, folder: Path) -> None:
        """Write the progress atomically."""
        write_file(folder / _PROGRESS, orjson.dumps(asdict(self)))

    def blocks(self, folder: Path) -> list[Block]:
        """Return the answers as blocks, with the spine's row as key."""
        return [
            Block(low, high, rows, functools.partial(read_block, folder / name, index))
            for name, listed in self.answers
            for index, (low, high, rows) in enumerate(listed)
        ]


def work_on(part: Part, report: Report, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Run a part from its saved progress to its end. `is_stopped` is called after each chunk.

    Raises:
        StoppedError: `is_stopped` returned True; the progress is saved.
        ConfigError: another process works on it.
        SpineError, SchemaError, SourceError: as `replay`.
    """
    part.folder.mkdir(parents=True, exist_ok=True)
    with _locked(part.folder):
        progress = Progress.load(part.folder)
        if not progress.is_done:
            room = part.folder / "log"
            shutil.rmtree(room, ignore_errors=True)
            total = _Walk(part, progress).run(room, report, is_stopped)
            shutil.rmtree(room, ignore_errors=True)
            report(part.place, total, total)


class _Walk:
    """A running part: its records, and answers not yet written."""

    def __init__(self, part: Part, progress: Progress) -> None:
        self._part = part
        self._progress = progress
        self._replay = Replay(part.views)
        if progress.records is not None:
            self._replay.load(part.folder / progress.records)
        self._answers: list[pl.DataFrame] = []
        self._files = list(progress.answers)

    def run(self, room: Path, report: Report, is_stopped: Callable[[], bool]) -> int:
        """Replay to the end; returns the total number of rows."""
        part, progress, total, read = self._part, self._progress, 0, 0

        def count(rows: int) -> None:
            """Report rows that are read and sorted, whose total is not known yet."""
            nonlocal read
            read += rows
            report(part.place, read, None)

        report(part.place, 0, None)
        spine = self._spine()
        if spine.height:
            until_us = int(spine_times(spine, "").max())
            span = Span(progress.cut_us, until_us, plan_of(part.views[0]), part.part, part.parts)
            log = open_log(part.events, span, part.memory_rows, lambda: room, part.written.csv_time_format, count)
            total = spine.height + sum(block.rows for blocks in log.values() for block in blocks)
            done, saved_s = 0, monotonic()
            for chunk, rows, cut_us in chunks(log, spine, part.chunk_rows, part.memory_rows):
                self._advance(chunk, rows)
                done += rows.height + sum(frame.height for frame in chunk.values())
                report(part.place, min(done, total), total)
                stopped = is_stopped()
                if cut_us is not None and (stopped or monotonic() - saved_s >= part.checkpoint_s):
                    self._checkpoint(cut_us)
                    saved_s = monotonic()
                if stopped:
                    raise StoppedError
        self._replay.failed_events.log()
        self._write_answers()
        progress.is_done, progress.answers, progress.records = True, self._files, None
        progress.save(part.folder)
        self._drop_records()
        return total

    def _spine(self) -> pl.DataFrame:
        """Return the part's unanswered spine rows, sorted by time: keys, time, request fields and row number."""
        part, plan = self._part, plan_of(self._part.views[0])
        request = (name for view in part.views for name in plan_of(view).layout.request)
        names = list(dict.fromkeys([*plan.entity, TIME, *request]))
        pieces, start = [], 0
        for piece in SpineFiles(part.spine, self._replay.plans, part.written).pieces(names):
            rows = piece.select(names).with_columns(row=pl.int_range(start, start + piece.height))
            start += piece.height
            pieces.append(rows if part.parts == 1 else rows.filter(in_part(plan, rows, part.part, part.parts)))
        if not pieces:
            return pl.DataFrame()
        spine = pl.concat(pieces, how="vertical_relaxed")
        check_spine(self._replay.plans, spine)
        times_us = pl.Series(spine_times(spine, plan.name))
        if self._progress.cut_us is not None:
            kept = times_us > self._progress.cut_us
            spine, times_us = spine.filter(kept), times_us.filter(kept)
        return spine[times_us.arg_sort()]

    def _advance(self, chunk: Mapping[type[Event], pl.DataFrame], rows: pl.DataFrame) -> None:
        answers = self._replay.frames(chunk, rows)
        if rows.height:
            self._answers.append(answers.with_columns(rows["row"]))
        if sum(frame.height for frame in self._answers) >= self._part.chunk_rows:
            self._write_answers()

    def _write_answers(self) -> None:
        if self._answers:
            name = f"answers{len(self._files)}.arrow"
            frame = pl.concat(self._answers).sort(ROW)
            blocks = write_blocks(frame, ROW, self._part.folder / name, _BLOCK_ROWS)
            self._files.append((name, [(block.low, block.high, block.rows) for block in blocks]))
            self._answers = []

    def _checkpoint(self, cut_us: int) -> None:
        self._write_answers()
        records = f"records{len(self._files)}-{cut_us}"
        self._replay.save(self._part.folder / records)
        self._progress.cut_us, self._progress.records, self._progress.answers = cut_us, records, list(self._files)
        self._progress.save(self._part.folder)
        self._drop_records()

    def _drop_records(self) -> None:
        for old in self._part.folder.glob("records*"):
            if old.name != self._progress.records:
                shutil.rmtree(old)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes; the lock ends with the process."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(f"{folder}: another process works on it; wait for its end or stop it") from exc
        yield
