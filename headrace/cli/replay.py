"""The command `replay`: write features of views over URLs to a file, with a progress bar on stderr.

A topic is first written to files beside the output, because a replay reads its log in time order, possibly in several
processes, and again when it is resumed:

    training.parquet.topics/Engagement/0.parquet ...      and done.json with the URLs once everything was read
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
import polars as pl

from headrace.atomic import write_file
from headrace.cli.progress import TOPICS, RowsBar
from headrace.features.view import FeatureView, events_of, plan_of
from headrace.history.export import CHECKPOINT_S, parts_folder, refuse_unfinished, replay_to_file
from headrace.history.log import MEMORY_ROWS
from headrace.history.output import check_output
from headrace.pipelines.from_history.reading import LeftOut, read_to_end
from headrace.pipelines.wiring import intake_of
from headrace.schemas import Event, spec_of
from headrace.schemas.time_units import TimeUnit
from headrace.settings import Settings, load_settings
from headrace.streams.files.finder import find_files
from headrace.streams.intake import Intake
from headrace.streams.read_ahead import keep_freed_memory
from headrace.streams.urls import FILES, named_url, scheme_of, source_of_url
from headrace.telemetry import configure_logs

SPOOL_ROWS = 1_000_000
"""Rows of a topic per file."""


def replay_views(
    views: Sequence[type[FeatureView]],
    urls: Sequence[str],
    spine: str,
    out: Path,
    settings: Settings,
    *,
    time_unit: TimeUnit | None = None,
    csv_time_format: str | None = None,
    overwrite: bool = False,
    workers: int = 1,
    resume: bool = False,
    memory_rows: int = MEMORY_ROWS,
    checkpoint_s: float = CHECKPOINT_S,
) -> int:
    """Replay `views` over `urls`, topics up to their current end, into `out`; returns the number of rows.

    `urls`: see `sources_of_urls`. Events of a topic that are dead letters in the live flow are left out here as well.

    Raises:
        ConfigError: a URL is invalid, `out` cannot be written, or `resume` with other inputs.
        HeadraceError: the source or the replay failed.
    """
    check_output(out, overwrite=overwrite)
    if not resume:
        refuse_unfinished(out)
    keep_freed_memory()
    events = events_of(map(plan_of, views))
    tables, topics = _files_and_topics(urls, events)
    archived = _pin_archives(tables) if topics else {}
    room = out.with_name(f"{out.name}.topics")
    try:
        with RowsBar() as bar:
            if topics:
                _spool(topics, events, room, settings, bar, archived, resume=resume)
                for event in events:
                    spooled = sorted((room / event.__name__).glob("*.parquet"), key=lambda path: int(path.stem))
                    tables.setdefault(event, []).extend(spooled)
            return replay_to_file(
                views,
                tables,
                spine,
                out,
                time_unit=time_unit,
                csv_time_format=csv_time_format,
                overwrite=overwrite,
                workers=workers,
                resume=resume,
                memory_rows=memory_rows,
                checkpoint_s=checkpoint_s,
                report=bar.show,
                prepare=_configure,
            )
    finally:
        if not parts_folder(out).exists():  # otherwise the run can be resumed, and needs them
            shutil.rmtree(room, ignore_errors=True)


def _files_and_topics(
    urls: Sequence[str], events: Sequence[type[Event]]
) -> tuple[dict[type[Event], list[str | Path]], list[str]]:
    """Split URLs into paths of files for each event, and URLs of topics."""
    files: dict[type[Event], list[str | Path]] = {}
    topics = []
    for url in urls:
        named, place = named_url(url, events)
        if scheme_of(place) is FILES:
            files.setdefault(named[0], []).append(place)
        else:
            topics.append(url)
    return files, topics


def _pin_archives(tables: dict[type[Event], list[str | Path]]) -> dict[str, int]:
    """Replace local archives with the files that they have now, so that the topic can be read from where they end.

    Returns the next offset of each partition at the end of the archives, from which the topic is read.

    Raises:
        SourceError: a path matches nothing.
    """
    archived: dict[str, int] = {}
    for event, paths in tables.items():
        pinned: list[str | Path] = []
        for path in paths:
            listed = find_files(path, spec_of(event).topic)
            archived |= listed.ends
            is_pinned = listed.ends and all(file.is_local for file in listed.files)
            pinned += [file.path for file in listed.files] if is_pinned else [path]
        tables[event] = pinned
    return archived


def _configure() -> None:
    keep_freed_memory()
    settings = load_settings()
    configure_logs(settings.log_level, as_json=settings.log_json)


def _spool(
    urls: Sequence[str],
    events: Sequence[type[Event]],
    room: Path,
    settings: Settings,
    bar: RowsBar,
    archived: Mapping[str, int],
    *,
    resume: bool,
) -> None:
    """Write the good events of topics, from where archives end, to `room/<event>/<n>.parquet`.

    With `resume`, files of an earlier run are kept if they are complete. `archived`: partition -> next offset after the
    archive of the topic.
    """
    done = room / "done.json"
    if resume and done.is_file() and orjson.loads(done.read_bytes()) == list(urls):
        return
    shutil.rmtree(room, ignore_errors=True)
    letters = LeftOut()
    intake = Intake(events, **intake_of(settings, letters))
    waiting: dict[type[Event], list[pl.DataFrame]] = {event: [] for event in events}
    read = 0
    for url in urls:
        source = source_of_url(url, events, until_end=True, config=settings.kafka)
        for batch in read_to_end(source, intake, archived):
            waiting[batch.event].append(batch.frame)
            read += batch.frame.height
            if sum(frame.height for frame in waiting[batch.event]) >= SPOOL_ROWS:
                _write(waiting[batch.event], room / batch.event.__name__)
            bar.show(TOPICS, read, None)
    for event, frames in waiting.items():
        _write(frames or [pl.DataFrame(schema=spec_of(event).polars)], room / event.__name__)
    write_file(done, orjson.dumps(list(urls)))
    if letters.count:
        bar.say(f"{letters.count:,} events of the topics are bad, and left out")


def _write(frames: list[pl.DataFrame], folder: Path) -> None:
    """Write frames as the next file of a folder, and clear the list."""
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(1 for _ in folder.glob("*.parquet"))
    pl.concat(frames).write_parquet(folder / f"{count}.parquet")
    frames.clear()
