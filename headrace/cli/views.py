"""Commands for views and their stored records."""

import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from headrace import project
from headrace.cli.console import (
    CsvTimeFormat,
    Json,
    KeysCommand,
    Runner,
    StoreUrl,
    View,
    app,
    command,
    err,
    escaped,
    features_app,
    finite,
    out,
    print_rows,
    report_broken,
    say,
)
from headrace.errors import ConfigError
from headrace.settings import load_settings

Views = Annotated[list[str], typer.Argument(metavar="VIEW...", help="module:Class, one or more")]
EventUrls = Annotated[
    list[str],
    typer.Option(
        "--events", metavar="URL", help="kafka://HOST:PORT, files, a glob or an archive; Class=URL for one of several."
    ),
]
BesideTopic = Annotated[
    bool,
    typer.Option("--files-beside-topic", help="Files and the topic of their event hold different events: count both."),
]


@command(app, "replay")
def replay(
    views: Views,
    events: EventUrls,
    spine: Annotated[str, typer.Option(metavar="URL", help="Files of rows: entity keys and event_time.")],
    to: Annotated[
        Path, typer.Option("--out", help="File to write: .parquet, .arrow, .ipc, .feather, .csv, .jsonl or .ndjson.")
    ],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    time_unit: Annotated[
        str | None,
        typer.Option("--spine-time-unit", help="Unit of event_time in the spine if it is bare numbers: s, ms, us, ns."),
    ] = None,
    csv_time_format: CsvTimeFormat = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each for a part of the entities.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a run that did not end.")] = False,
    memory_rows: Annotated[
        int, typer.Option(min=1, help="Events in memory at a time; a larger log is sorted on disk.")
    ] = 10_000_000,
    checkpoint: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Seconds between checkpoints: the work that a resumed run repeats."),
    ] = 60.0,
) -> None:
    """Write point-in-time features for a table of entity keys and times (a spine).

    Example: `headrace replay VIEW --events LOG --spine ROWS --out FILE`
    """
    from headrace.cli.replay import replay_views

    rows = replay_views(
        _views(views),
        events,
        spine,
        to,
        load_settings(),
        time_unit=_time_unit(time_unit),
        csv_time_format=csv_time_format,
        overwrite=overwrite,
        workers=workers,
        resume=resume,
        memory_rows=memory_rows,
        checkpoint_s=checkpoint,
    )
    err.print(f"{rows:,} rows: {to}", highlight=False)


@command(app, "materialize", has_metrics=True)
def materialize(
    views: Views,
    events: EventUrls,
    store: StoreUrl = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop at the end that a topic has now.")] = False,
    runner: Runner = None,
    workers: Annotated[int, typer.Option(min=1, help="Bytewax workers: threads of this process.")] = 1,
    memory_records: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Records of a view in memory, others are fetched when touched. Default: HEADRACE_MEMORY_RECORDS.",
        ),
    ] = None,
    *,
    beside_topic: BesideTopic = False,
    csv_time_format: CsvTimeFormat = None,
) -> None:
    """Keep the records of views in the store up to date with their events, until stopped or at the files' end.

    Example: `headrace materialize features.customer:CustomerActivity --events kafka://127.0.0.1:9092`
    """
    from headrace.cli.materialize import materialize_views

    declared, opened, settings = _views(views), _store(store), load_settings()
    records_max = memory_records or settings.memory_records
    with opened:
        materialize_views(
            declared,
            events,
            opened,
            settings,
            until_end=until_end,
            runner=runner,
            workers=workers,
            records_max=records_max,
            beside_topic=beside_topic,
            csv_time_format=csv_time_format,
            say=lambda line: say(f"materialize is up: {line}"),
        )


@command(app, "backfill", has_metrics=True)
def backfill(
    views: Views,
    events: EventUrls,
    store: StoreUrl = None,
    handover: Annotated[
        Path | None, typer.Option(help="JSON file {partition: next offset} of the live topic, for plain files.")
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--no-handover", help="No topic ever feeds these views: plain files need no hand-over.")
    ] = False,
    *,
    beside_topic: BesideTopic = False,
    csv_time_format: CsvTimeFormat = None,
    as_json: Json = False,
) -> None:
    """Build views, or new versions of changed ones, from history; readers are switched to them at the end.

    Example: `headrace backfill features.customer:CustomerActivity --events archive/`
    """
    from headrace.cli.materialize import backfill_views

    declared, opened = _views(views), _store(store)
    with opened:
        done = backfill_views(
            declared,
            events,
            opened,
            load_settings(),
            handover,
            files_only=files_only,
            beside_topic=beside_topic,
            csv_time_format=csv_time_format,
        )
    if not done:
        raise ConfigError("stopped before the end of the history, so views are incomplete; the same command goes on")
    print_rows([asdict(row) for row in done], as_json)


@command(app, "verify")
def verify(
    views: Views,
    events: EventUrls,
    store: StoreUrl = None,
    csv_time_format: CsvTimeFormat = None,
    as_json: Json = False,
) -> None:
    """Replay events up to the store's offsets and compare with the stored records; exit 1 on a difference.

    Example: `headrace verify features.customer:CustomerActivity --events archive/`
    """
    from headrace.cli.materialize import verify_views

    declared, opened = _views(views), _store(store)
    with opened:
        results = verify_views(declared, events, opened, load_settings(), csv_time_format=csv_time_format)
    features = ({"view": one.view, **row} for one in results for row in one.features.iter_rows(named=True))
    print_rows([one.as_dict() for one in results] if as_json else list(features), as_json)
    for result in results:
        for example in result.examples.iter_rows(named=True):
            err.print(
                f"{result.view} · {example['feature']} · key {example['key']}: stored {example['found']}, "
                f"replayed {example['expected']}",
                highlight=False,
                markup=False,
            )
        words = f"{result.entities:,} entities, {result.rows:,} rows replayed, {result.mismatches:,} differences"
        words += f", {result.waiting:,} rows not applied yet" * bool(result.waiting)
        words += f", {result.earlier:,} rows before the first that the store has read" * bool(result.earlier)
        words += f", {result.failed:,} rows left out, as live: an expression has no value" * bool(result.failed)
        err.print(f"{result.view}: {words}", highlight=False)
        for note in _notes(result):
            err.print(f"{result.view}: {note}", highlight=False)
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@command(app, "get", kind=KeysCommand)
def get(
    view: View,
    keys: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="entity keys; a composite key is written a,b, or as JSON '[\"a,b\", 3]'. Keys that begin with a "
            "hyphen and are no numbers follow --",
        ),
    ],
    store: StoreUrl = None,
    now: Annotated[str | None, typer.Option(help="As of this time, ISO 8601. Default: the clock's now.")] = None,
    request: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A field of the request, for a view with request=; once each. Without any, features of it are null.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read records from the online store.

    Example: `headrace get features.customer:CustomerActivity 13085`
    """
    from headrace.features import plan_of
    from headrace.features.store.reader import frame_of_texts, instant_us

    [declared] = _views([view])
    asked = frame_of_texts(plan_of(declared), keys, request or ())
    at_us = load_settings().event_clock.now_us() if now is None else instant_us(now)
    with _store(store) as opened:
        frame = opened.read(declared, asked if request else asked.rows(), at_us)
    if as_json:
        typer.echo(orjson.dumps([_plain(record) for record in frame.iter_rows(named=True)]))
    else:
        _print_records(frame)


@command(features_app, "list")
def features_list(as_json: Json = False) -> None:
    """List the views.

    Example: `headrace features list`
    """
    from headrace.features import FeatureView, is_base, plan_of, plans_of

    root = project.activate()
    declared, broken = project.subclasses_in("features", FeatureView, root)
    views = [view for view in declared if not is_base(view)]
    plans = [plan_of(view) for view in views]
    rows = [
        {"view": plan.declared_in, "entity": ", ".join(plan.entity), "features": len(plan.features)} for plan in plans
    ]
    if rows or as_json or not broken:
        print_rows(rows, as_json, empty="no views: declare a FeatureView in a module of features/")
    report_broken(broken)
    if views:
        plans_of(views, "features of this project")


@command(features_app, "versions")
def features_versions(view: View, store: StoreUrl = None, as_json: Json = False) -> None:
    """List the versions of a view that the store holds; the active one is what readers get.

    Example: `headrace features versions features.customer:CustomerActivity`
    """
    from headrace.features import plan_of

    [declared] = _views([view])
    with _store(store) as opened:
        rows = [asdict(version) for version in opened.views.list(plan_of(declared))]
        print_rows(rows, as_json, empty=f"no version of {view} in {opened.url}: materialize or backfill it")


@command(features_app, "adopt")
def features_adopt(view: View, store: StoreUrl = None) -> None:
    """Make a class that was moved or renamed the owner of its view's name in the store.

    Example: `headrace features adopt features.customer:CustomerActivity`
    """
    from headrace.features import plan_of

    [declared] = _views([view])
    plan = plan_of(declared)
    with _store(store) as opened:
        before = opened.adopt(plan)
    err.print(f"{plan.name}: owned by {plan.declared_in}, before by {before or 'nobody'}", highlight=False)


@command(features_app, "drop")
def features_drop(
    view: View, version: Annotated[str, typer.Argument(help="as `features versions` tells")], store: StoreUrl = None
) -> None:
    """Delete an old version of a view from the store, records and offsets; the active one is refused.

    Example: `headrace features drop features.customer:CustomerActivity 1f0c9a2b`
    """
    from headrace.features import plan_of

    [declared] = _views([view])
    with _store(store) as opened:
        err.print(f"{opened.views.drop(plan_of(declared), version):,} keys deleted", highlight=False)


@command(features_app, "show")
def features_show(view: View, as_json: Json = False) -> None:
    """Show a view's features.

    Example: `headrace features show features.customer:CustomerActivity`
    """
    from headrace.features import plan_of

    project.activate()
    plan = plan_of(project.load_object(view, "features"))
    print_rows([{"feature": feature.full_name, "type": str(feature.dtype)} for feature in plan.features], as_json)


def _notes(result: Any) -> list[str]:
    """Notes about entities that were not compared."""
    notes = []
    if result.beyond:
        notes.append(
            f"the store has applied {result.beyond:,} offsets past the end of the log: {result.newer:,} entities with "
            "newer events were not compared, and late events among them show as differences"
        )
    if result.ahead:
        notes.append(
            f"{result.ahead:,} entities were not compared: an event of theirs was further ahead of the clock than "
            "HEADRACE_FUTURE_S when it was appended, so it may be a dead letter"
        )
    return notes


def _time_unit(text: str | None) -> Any:
    from headrace.schemas.time_units import TIME_UNITS

    if text not in (None, *TIME_UNITS):
        raise ConfigError(f"--spine-time-unit {text}: use one of {', '.join(TIME_UNITS)}")
    return text


def _views(names: list[str]) -> list[Any]:
    project.activate()
    return [project.load_object(name, "features") for name in dict.fromkeys(names)]


def _store(url: str | None) -> Any:
    from headrace.features import OnlineStore

    settings = load_settings()
    place = settings.redis_url if url is None else url
    return OnlineStore.open(place, settings.shards, settings.namespace, allow_eviction=settings.allow_eviction)


def _print_records(frame: Any) -> None:
    """Print each record as a block with a line per feature, since lists are too wide for a table."""
    from rich.table import Table

    from headrace.features.view import AGE_S

    for record in frame.iter_rows(named=True):
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, value in _plain(record).items():
            table.add_row(f"[cyan]{name}[/]", escaped(readable_age(value) if name == AGE_S else value))
        out.print(table)


def _plain(value: Any) -> Any:
    """Convert a record's value for JSON: times to ISO 8601 in UTC, bytes to hex, non-finite floats to null."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable_age(age_s: float | None) -> str:
    """Format seconds in suitable units, with at most two parts.

    >>> readable_age(0.4), readable_age(75), readable_age(3 * 86_400 + 7_300), readable_age(-5), readable_age(None)
    ('0.4 s', '1 min 15 s', '3 d 2 h', '-5 s', 'None')
    """
    if age_s is None or abs(age_s) < 60:
        return "None" if age_s is None else f"{age_s:.3g} s"
    left, parts = int(abs(age_s)), list[str]()
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return "-" * (age_s < 0) + " ".join(filter(None, parts[:2]))
