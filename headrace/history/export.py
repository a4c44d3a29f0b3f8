"""Replay into a file, in parts that are kept beside it until they are joined, so that a run can be resumed.

    training.parquet.parts/
        inputs.json          views, events, spine and number of parts: a run is resumed only with equal ones
        <views>-<part>/      one part (`parts`)

Views of one entity are replayed together. Finally the answers of all views are merged into the spine's order and
written piece by piece, next to the spine's columns.
"""

import contextlib
import hashlib
import inspect
import multiprocessing
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from headrace.atomic import write_file
from headrace.errors import ConfigError, HeadraceError
from headrace.features.view import FeatureView, plan_of, plans_of
from headrace.history.external_sort import Block, merged
from headrace.history.log import MEMORY_ROWS, PIECE_ROWS, Paths, tables_of
from headrace.history.output import check_output, write_output
from headrace.history.parts import ROW, Part, Progress, Report, StoppedError, work_on
from headrace.history.replay import CHUNK_ROWS, Replay
from headrace.history.spine import SpineFiles, SpineFormat, check_spine
from headrace.kernels.threads import VARIABLE, thread_count
from headrace.schemas import Event, spec_of
from headrace.schemas.time_units import TimeUnit
from headrace.streams.files.finder import EventFile, find_files

CHECKPOINT_S = 60.0
"""Seconds between checkpoints, and so the most work that a resumed run repeats."""


def replay_to_file(
    views: Sequence[type[FeatureView]],
    events: Paths | Mapping[type[Event], Paths],
    spine: Paths,
    out: str | Path,
    *,
    time_unit: TimeUnit | None = None,
    csv_time_format: str | None = None,
    overwrite: bool = False,
    workers: int = 1,
    resume: bool = False,
    memory_rows: int = MEMORY_ROWS,
    chunk_rows: int = CHUNK_ROWS,
    checkpoint_s: float = CHECKPOINT_S,
    report: Report = lambda _place, _done, _total: None,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Write the result of `replay` to the file `out`, in the format of its suffix, and return the number of rows.

    Arguments:
        events, spine: files, by path, glob, folder of an archive or URL.
        out: a Parquet, Arrow IPC, CSV or JSON lines file (`output` has the formats).
        time_unit, csv_time_format: as for `replay`.
        overwrite: replace an existing file.
        workers: number of processes, each for a part of the entities; `memory_rows` is divided among them.
        resume: continue an earlier run with the same inputs, if there is one.
        checkpoint_s: seconds between checkpoints, from which a run can be resumed.
        report: receives each part's progress; called in this process.
        prepare: called first in each worker process; must be a module-level function.

    Raises:
        ConfigError: `out` cannot be written, or exists; `resume` with other inputs than before; or parts of an earlier
            run exist and `resume` is not set.
        SpineError, SchemaError, SourceError: as `replay`.
        HeadraceError: a worker died.
    """
    check_output(Path(out), overwrite=overwrite)
    plans = plans_of(views, "replay")
    tables = {event: _pinned(table, event) for event, table in tables_of(plans, events).items()}
    written = SpineFormat(time_unit, csv_time_format)
    rows_to_answer = SpineFiles(spine, plans, written)
    check_spine(plans, pl.DataFrame(schema=rows_to_answer.schema))
    folder = parts_folder(out)
    if not resume:
        refuse_unfinished(out)
    count = _begun(folder, _inputs(views, tables, rows_to_answer.files, written), workers, resume=resume)
    groups = _groups(views)
    parts = [
        Part(
            place=place,
            folder=folder / f"{place // count}-{place % count}",
            views=groups[place // count],
            events={event: tables[event] for view in groups[place // count] for event in plan_of(view).sources},
            spine=spine,
            written=written,
            part=place % count,
            parts=count,
            memory_rows=max(memory_rows // workers, 1),
            chunk_rows=chunk_rows,
            checkpoint_s=checkpoint_s,
        )
        for place in range(len(groups) * count)
    ]
    try:
        _work_on_all(parts, workers, report, prepare)
    except BaseException:
        if not _has_progress(folder):
            shutil.rmtree(folder)  # nothing to resume from
        raise
    rows = write_output(_joined(views, parts, rows_to_answer), Path(out))
    shutil.rmtree(folder)
    return rows


def refuse_unfinished(out: str | Path) -> None:
    """Check that there is no earlier run into `out` to resume.

    Raises:
        ConfigError: there is one.
    """
    folder = parts_folder(out)
    if _has_progress(folder):
        raise ConfigError(f"{folder} is left of a run that did not end: --resume goes on; or delete it")


def parts_folder(out: str | Path) -> Path:
    """Return the folder of the parts of a run into `out`, which exists until the run ends."""
    return Path(out).with_name(f"{Path(out).name}.parts")


def _has_progress(folder: Path) -> bool:
    """Return whether an earlier run left progress to resume from."""
    return any(folder.glob("*/progress.json"))


def _groups(views: Sequence[type[FeatureView]]) -> list[tuple[type[FeatureView], ...]]:
    """Group views by entity: the views of a group share the split of their entities into parts."""
    by_entity: dict[Any, list[type[FeatureView]]] = {}
    for view in views:
        by_entity.setdefault((plan_of(view).entity, plan_of(view).key_dtype), []).append(view)
    return [tuple(group) for group in by_entity.values()]


def _inputs(
    views: Sequence[type[FeatureView]],
    tables: Mapping[type[Event], Paths],
    spine: Sequence[EventFile],
    written: SpineFormat,
) -> dict[str, Any]:
    """Describe everything that the answers depend on; a run is resumed only with equal inputs."""
    declared = {}
    for view in views:
        plan, source = plan_of(view), ""
        with contextlib.suppress(OSError, TypeError):  # for example, declared in a console
            source = inspect.getsource(view)
        declared[plan.name] = [plan.fingerprint, hashlib.sha256(source.encode()).hexdigest()]
    return {
        "views": declared,
        "events": {
            event.__name__: [_identity(file) for file in find_files(table, spec_of(event).topic).files]
            for event, table in tables.items()
        },
        "spine": [_identity(file) for file in spine],
        "formats of times": [written.time_unit, written.csv_time_format],
    }


def _pinned(table: Any, event: type[Event]) -> Any:
    """Resolve a local pattern or archive to its present files, so that all parts read the same ones while it grows."""
    files = find_files(table, spec_of(event).topic).files
    return [file.path for file in files] if files and all(file.is_local for file in files) else table


def _identity(file: EventFile) -> list[Any]:
    return [file.url, file.size, file.version]


def _begun(folder: Path, inputs: Mapping[str, Any], parts: int, *, resume: bool) -> int:
    """Start or resume a run, and return its number of parts."""
    noted = folder / "inputs.json"
    if folder.exists() and not noted.is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is needed for the parts of the replay, and holds something else: move it away")
    if noted.is_file() and not resume:
        shutil.rmtree(folder)
    if noted.is_file():
        known = orjson.loads(noted.read_bytes())
        changed = [name for name, value in inputs.items() if known["inputs"][name] != value]
        if changed:
            raise ConfigError(
                f"--resume: {' and '.join(changed)} changed since {folder} was begun; delete it and begin anew"
            )
        return int(known["parts"])
    folder.mkdir(parents=True, exist_ok=True)
    write_file(noted, orjson.dumps({"inputs": inputs, "parts": parts}))
    return parts


# Workers


def _work_on_all(parts: Sequence[Part], workers: int, report: Report, prepare: Callable[[], None] | None) -> None:
    """Run all parts to their end: one after the other in this process, or in `workers` processes."""
    if workers > 1:
        _work_in_processes(parts, workers, report, prepare)
        return
    for part in parts:
        work_on(part, report)


def _work_in_processes(parts: Sequence[Part], workers: int, report: Report, prepare: Callable[[], None] | None) -> None:
    context = multiprocessing.get_context("spawn")  # Polars' threads do not survive a fork
    reports, stop = context.Queue(), context.Event()
    threads = max(thread_count() // workers, 1)
    with ProcessPoolExecutor(workers, context, _start_worker, (reports, stop, prepare, threads)) as pool:
        futures = [pool.submit(_work, part) for part in parts]
        try:
            is_done = False
            while not is_done:
                is_done = _are_done(futures)
                with contextlib.suppress(queue.Empty):
                    while True:
                        report(*reports.get(timeout=0.1))
        except BaseException as exc:
            stop.set()
            for future in futures:
                future.cancel()
            if isinstance(exc, BrokenProcessPool):
                raise HeadraceError(
                    "replay: a worker died, of memory perhaps; go on with --resume and fewer workers or --memory-rows"
                ) from exc
            raise


def _are_done(futures: Sequence["Future[None]"]) -> bool:
    """Return whether all parts have ended; re-raise the error of a failed part."""
    done, running = wait(futures, 0, FIRST_EXCEPTION)
    for future in done:
        future.result()
    return not running


def _start_worker(reports: Any, stop: Any, prepare: Callable[[], None] | None, threads: int) -> None:
    """Called once in each worker process, which exits when its parent does, for any reason."""
    os.environ[VARIABLE] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if prepare is not None:
        prepare()
    _worker.update(reports=reports, stop=stop)


_worker: dict[str, Any] = {}


def _work(part: Part) -> None:
    with contextlib.suppress(StoppedError):  # the parent no longer waits for it
        work_on(part, lambda *words: _worker["reports"].put(words), _worker["stop"].is_set)


# Joining answers and spine


def _joined(views: Sequence[type[FeatureView]], parts: Sequence[Part], spine: SpineFiles) -> Iterator[pl.DataFrame]:
    """Yield the spine with its answers, in at least one piece."""
    plans = [plan_of(view) for view in views]
    columns = [feature.full_name for plan in plans for feature in plan.features]
    streams = []
    for group in _groups(views):
        mine = [part.folder for part in parts if part.views == group]
        streams.append(_Answers([block for folder in mine for block in Progress.load(folder).blocks(folder)]))
    head = pl.DataFrame(schema=spine.schema)
    yield pl.concat([head, Replay(views).frames({}, head)], how="horizontal")
    for piece in spine.pieces():
        answers = [stream.take(piece.height) for stream in streams]
        yield pl.concat([piece, *answers], how="horizontal").select(*piece.columns, *columns)


class _Answers:
    """Answers of the views of one entity, in the spine's order."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._frames = self._in_order(blocks)
        self._buffered: list[pl.DataFrame] = []

    def take(self, rows: int) -> pl.DataFrame:
        """Return the answers of the next `rows` rows."""
        rows_buffered = sum(frame.height for frame in self._buffered)
        while rows_buffered < rows:
            self._buffered.append(next(self._frames))
            rows_buffered += self._buffered[-1].height
        whole = pl.concat(self._buffered)
        self._buffered = [whole[rows:]]
        return whole[:rows].drop("row")

    @staticmethod
    def _in_order(blocks: Sequence[Block]) -> Iterator[pl.DataFrame]:
        row = 0
        for stretch, _ in merged({"": blocks}, {"": ROW}, PIECE_ROWS):
            if stretch:
                answers = stretch[""]
                assert answers["row"][0] == row
                assert answers["row"][-1] == row + answers.height - 1
                row += answers.height
                yield answers
