"""The commands `materialize`, `backfill` and `verify`, which run over the sources that URLs name."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from headrace.cli.progress import RowsBar
from headrace.clock import WallClock
from headrace.errors import ConfigError
from headrace.features.store import OnlineStore
from headrace.features.store.fences import Fence
from headrace.features.view import FeatureView, events_of, plan_of
from headrace.history.verification import Verification
from headrace.history.verify import verify_all
from headrace.pipelines.backfill import Backfilled, backfill
from headrace.pipelines.flow import materialize_flow
from headrace.pipelines.from_history.reading import LeftOut, read_to_end
from headrace.pipelines.materializer import FlushSummary
from headrace.pipelines.runner import Runner, run_flow
from headrace.pipelines.wiring import intake_of
from headrace.schemas import FileDeadLetters, spec_of
from headrace.settings import Settings
from headrace.streams.intake import Intake
from headrace.streams.positions import OFFSET_MAX, Reached, is_live, least_positions
from headrace.streams.source import EventBatch, Source
from headrace.streams.urls import sources_of_urls

BACKFILL_ROWS = 262_144
"""Rows per batch if freshness does not matter: an entity's record is fetched once for many of its events."""


def materialize_views(
    views: Sequence[type[FeatureView]],
    urls: Sequence[str],
    store: OnlineStore,
    settings: Settings,
    *,
    until_end: bool = False,
    runner: Runner | None = None,
    workers: int = 1,
    records_max: int | None = None,
    beside_topic: bool = False,
    csv_time_format: str | None = None,
    say: Callable[[str], object] | None = None,
) -> None:
    """Run a flow of `views` over `urls` until it ends or is stopped; bad events go to files of dead letters.

    `runner` and `workers`: see `run_flow`. `records_max`: records of a view in memory; None: all that were used.
    `beside_topic`: files and topics hold different events, so both count. `csv_time_format`: see `OpenOptions`. `say`
    is called with one line once the flow runs.

    Raises:
        ConfigError: the views may have read the events of a topic from files, or the other way round.
        HeadraceError: the source or the store failed.
    """
    events = events_of(map(plan_of, views))
    source = sources_of_urls(
        urls,
        events,
        until_end=until_end,
        config=settings.kafka,
        beside_topic=beside_topic,
        csv_time_format=csv_time_format,
    )
    letters = FileDeadLetters(settings.dead_letter_dir)
    with contextlib.closing(letters), RowsBar(description="materialize", line_s=None) as bar:
        options = {"records_max": records_max, "on_status": _FlowProgress(bar).on_status}
        flow = materialize_flow(source, views, store, intake_of(settings, letters), **options)
        run_flow(flow, runner=runner, workers=workers, say=say)
    names = ", ".join(plan_of(view).name for view in views)
    bar.say(f"{names} in {store.url}: done after {bar.elapsed_s:.1f} s")


def backfill_views(
    views: Sequence[type[FeatureView]],
    urls: Sequence[str],
    store: OnlineStore,
    settings: Settings,
    handover: Path | None = None,
    *,
    files_only: bool = False,
    beside_topic: bool = False,
    csv_time_format: str | None = None,
) -> list[Backfilled]:
    """Backfill `views` from `urls`; the live topic continues where an archive ends, or at the offsets in `handover`.

    `files_only`: the views never read a topic, so no offsets are needed. `beside_topic`: files and topics hold
    different events, so both count. `csv_time_format`: see `OpenOptions`. Returns [] if it was stopped.

    Raises:
        ConfigError: the offset at which the topic continues is not known, or the hand-over is not a JSON object of
            offsets.
        HeadraceError: the source or the store failed.
    """
    events = events_of(map(plan_of, views))
    source = sources_of_urls(
        urls,
        events,
        until_end=True,
        rows_max=BACKFILL_ROWS,
        config=settings.kafka,
        beside_topic=beside_topic,
        csv_time_format=csv_time_format,
    )
    ends = {name: offset for part in source.parts() for name, offset in part.ends().items()}
    if handover is not None:
        ends |= offsets_of(handover, {spec_of(event).topic for event in events})
    has_topic = any(part.has_live_offsets for part in source.parts())
    if not files_only:
        _require_ends(source, ends)
    letters = FileDeadLetters(settings.dead_letter_dir)
    with contextlib.closing(letters), RowsBar(description="backfill", line_s=None) as bar:
        on_flush = _FlowProgress(bar).on_flush
        intake = intake_of(settings, letters)
        done = backfill(views, source, store, handover=ends, on_flush=on_flush, **intake)
    if not has_topic:
        return done
    history = {name for part in source.parts() if not part.has_live_offsets for name in part.partitions()}
    return [
        dataclasses.replace(row, handed_over={name: at for name, at in reached.items() if name not in history})
        for row, view in zip(done, views, strict=False)  # none are done if it was stopped
        for reached in [least_positions(fence.offsets for fence in _fences(view, store))]
    ]


def _require_ends(source: Source, ends: Mapping[str, int]) -> None:
    topics, known = set[str](), {name.partition("/")[0] for name in ends}
    for part in source.parts():
        (known if part.has_live_offsets else topics).update(name.partition("/")[0] for name in part.partitions())
    for topic in sorted(topics - known):
        raise ConfigError(
            f"plain files do not say up to which offset of topic {topic!r} they reach, so the live flow "
            f'would count their events again: give --handover FILE with {{"{topic}/0": <next offset>, ...}}, '
            "read the topic itself (kafka://HOST:PORT) while it keeps all of them, or the folder of an archive, or say "
            "--no-handover if no topic ever feeds these views"
        )


def _fences(view: type[FeatureView], store: OnlineStore) -> list[Fence]:
    return list(store.fences(plan_of(view), range(store.shards)).values())


def verify_views(
    views: Sequence[type[FeatureView]],
    urls: Sequence[str],
    store: OnlineStore,
    settings: Settings,
    *,
    csv_time_format: str | None = None,
) -> list[Verification]:
    """Compare each view with a replay of `urls`, read up to their current end.

    Raises:
        HeadraceError: the source or the store failed.
    """
    events = events_of(map(plan_of, views))
    source = sources_of_urls(
        urls,
        events,
        until_end=True,
        rows_max=BACKFILL_ROWS,
        config=settings.kafka,
        csv_time_format=csv_time_format,
    )
    readers = [_reached(view, store) for view in views]
    for part in source.parts():
        part.tell_origins()
        part.refuse_changed(readers)
    intake = intake_of(settings, LeftOut())
    future_us = intake["future_us"] if isinstance(intake["clock"], WallClock) else None
    return verify_all(views, _Log(source, Intake(events, **intake)), store, future_us=future_us)


def _reached(view: type[FeatureView], store: OnlineStore) -> Reached:
    """Partition -> next offsets of the shards of a view."""
    reached: dict[str, set[int]] = {}
    for fence in _fences(view, store):
        for name, offset in fence.offsets.items():
            reached.setdefault(name, set()).add(offset)
    return reached


class _Log:
    """The good rows of a source, which each iteration reads from the start to the current end.

    `ends`: partition of a topic -> offset at which the log ends, except for topics that are themselves read to their
    end. Rows of such a topic that are also in an archive among the sources are left out.
    """

    def __init__(self, source: Source, intake: Intake) -> None:
        self._source = source
        self._intake = intake
        self._archived = {name: end for part in source.parts() for name, end in part.ends().items()}
        live = {name for name in source.partitions() if name in self._archived}
        self.ends = {name: end for name, end in self._archived.items() if name not in live}

    def __iter__(self) -> Iterator[EventBatch]:
        positions = {name: end for name, end in self._archived.items() if name not in self.ends}
        return read_to_end(self._source.share(0, 1), self._intake, positions)


class _FlowProgress:
    """Progress of a flow's rows on a bar, from its status or its flushes."""

    def __init__(self, bar: RowsBar) -> None:
        self._bar = bar
        self._rows = 0
        self._first: int | None = None

    def on_status(self, status: Mapping[str, Any]) -> None:
        """Update the bar from a flow's status; called twice a second."""
        if not status["steps"]:
            return
        offsets = sum(offset for step in status["steps"] for offset in step["positions"].values())
        self._first = offsets if self._first is None else self._first
        records = sum(step["records"] for step in status["steps"])
        freshness = status["steps"][0]["freshness_ms"]["p50"]
        words = "" if freshness is None else f" · freshness {freshness:,.0f} ms"
        self._bar.update(offsets - self._first, words=f"{records:,} records{words}")

    def on_flush(self, summary: FlushSummary) -> None:
        """Update the bar after a flush of a backfill."""
        self._rows += summary.events
        self._bar.update(self._rows, words=f"{summary.records:,} records in the last flush")


def offsets_of(path: Path, topics: Collection[str]) -> dict[str, int]:
    """Read the offsets of a hand-over file; offsets of other topics are an error, since they would have no effect.

    Raises:
        ConfigError: it is not a JSON object of offsets for partitions of `topics`.
    """
    example = f'{{"{min(topics)}/0": 1200}}'
    try:
        offsets = orjson.loads(path.read_bytes())
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigError(f"--handover {path}: cannot be read ({reason}); write a file such as {example}") from exc
    except orjson.JSONDecodeError as exc:
        raise ConfigError(f"--handover {path}: no JSON: {exc}; write an object such as {example}") from exc
    if not isinstance(offsets, dict) or not offsets:
        raise ConfigError(f"--handover {path}: write a JSON object such as {example}")
    for partition, offset in offsets.items():
        topic, _, number = partition.rpartition("/")
        if topic not in topics or not is_live(partition, topic) or number != str(int(number)):
            raise ConfigError(
                f"--handover {path}: {partition!r} is no partition of {', '.join(sorted(topics))}; write {example}"
            )
        if type(offset) is not int or not 0 <= offset <= OFFSET_MAX:
            raise ConfigError(f"--handover {path}: {partition}: {offset!r} is no offset; write {example}")
    _refuse_gaps(path, offsets)
    return dict(offsets)


def _refuse_gaps(path: Path, offsets: Collection[str]) -> None:
    """Reject a hand-over that skips a lower partition: the live flow would read that partition from its start."""
    numbers: dict[str, set[int]] = {}
    for partition in offsets:
        topic, _, number = partition.rpartition("/")
        numbers.setdefault(topic, set()).add(int(number))
    for topic, named in sorted(numbers.items()):
        lacking = next((number for number in range(len(named)) if number not in named), None)
        if lacking is not None:
            raise ConfigError(
                f"--handover {path}: {topic}/{max(named)} is named and {topic}/{lacking} is not, which the live flow "
                "would read from its start; name every partition, with 0 where the files hold nothing of it"
            )
