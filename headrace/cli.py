"""The `headrace` command. Data goes to stdout, words to stderr; an error is one line and exit code 1.

Heavy packages (torch, ray, bytewax) are imported by the command that needs them, so that `headrace get` starts fast.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from headrace import project
from headrace.errors import ConfigError, HeadraceError
from headrace.settings import load_settings
from headrace.telemetry import configure_logs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Streaming features, online learning, hot-swapped serving.",
)
schemas_app = typer.Typer(no_args_is_help=True, help="The project's events and their lock files.")
features_app = typer.Typer(no_args_is_help=True, help="The project's views.")
models_app = typer.Typer(no_args_is_help=True, help="Published models.")
app.add_typer(schemas_app, name="schemas")
app.add_typer(features_app, name="features")
app.add_typer(models_app, name="models")

out, err = Console(), Console(stderr=True)
P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreUrl = Annotated[str | None, typer.Option("--store", help="Redis URL. Default: HEADRACE_REDIS_URL.")]
View = Annotated[str, typer.Argument(metavar="VIEW", help="module:Class, e.g. features.customer:CustomerActivity")]


def command(group: typer.Typer, name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose `HeadraceError`s become one line on stderr and exit code 1."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                settings = load_settings()
                configure_logs(settings.log_level, as_json=settings.log_json)
                function(*args, **kwargs)
            except HeadraceError as exc:
                err.print(f"[bold red]error:[/] {_escaped(exc)}", highlight=False, soft_wrap=True)
                raise typer.Exit(1) from exc
            except BrokenPipeError as exc:  # `headrace get ... | head` closes our stdout
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise typer.Exit(0) from exc

        group.command(name)(run)
        return function

    return register


@command(app, "demo")
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="Length of the live part.")] = 90.0,
    speed: Annotated[
        float | None, typer.Option(help="Event clock against the wall, constant. Default: evenly through the log.")
    ] = None,
    requests_per_s: Annotated[float, typer.Option(min=0.1, help="Rankings asked for.")] = 60.0,
    warm_rows: Annotated[int, typer.Option(min=1_000, help="Newest history rows the model is warmed on.")] = 300_000,
    folder: Annotated[Path, typer.Option(help="Where data, logs and the warm start are kept.")] = Path(
        ".headrace/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report there as JSON.")] = None,
) -> None:
    """Run the main job on real input.

    Example: `headrace demo --seconds 60 --json report.json`
    """
    from headrace.demo.run import DemoOptions, run_demo

    root = project.activate()
    declared = project.load_object("pipelines.demo:demo")
    options = DemoOptions(seconds, speed, requests_per_s, warm_rows, folder, seed, json_path)
    if not run_demo(declared, root, options):
        raise typer.Exit(1)


@command(app, "run")
def run(
    module: Annotated[str, typer.Argument(help="A module with a `flow`, e.g. pipelines.materialize")],
    workers: Annotated[int, typer.Option(min=1, help="Bytewax workers: threads of this process.")] = 1,
) -> None:
    """Run a dataflow of the project until it is stopped.

    Example: `headrace run pipelines.materialize`
    """
    from headrace.pipelines.on_bytewax import run as run_flow

    project.activate()
    run_flow(project.load_object(f"{module}:flow"), workers)


@command(app, "replay")
def replay(
    views: Annotated[list[str], typer.Argument(metavar="VIEW...", help="module:Class, one or more")],
    events: Annotated[Path, typer.Option(help="The log: Parquet, Arrow, Avro, JSONL or CSV.")],
    spine: Annotated[Path, typer.Option(help="Rows of entity keys and event_time, in the same formats.")],
    to: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
) -> None:
    """Features as of each row of a spine.

    Example: `headrace replay VIEW --events LOG --spine ROWS --out FILE`
    """
    from headrace.features import replay as replay_views

    project.activate()
    frame = replay_views([project.load_object(view) for view in views], events, spine)
    frame.write_parquet(to)
    err.print(f"{frame.height:,} rows, {frame.width} columns: {to}", highlight=False)


@command(app, "get")
def get(
    view: View,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="entity keys; a composite key is written a,b")],
    store: StoreUrl = None,
    now: Annotated[str | None, typer.Option(help="As of this time, ISO 8601. Default: the clock's now.")] = None,
    as_json: Json = False,
) -> None:
    """Read records from the online store.

    Example: `headrace get features.customer:CustomerActivity 13085`
    """
    from headrace.features import OnlineStore, plan_of
    from headrace.features.reader import frame_of_texts

    project.activate()
    settings = load_settings()
    declared = project.load_object(view)
    with OnlineStore.open(store or settings.redis_url, settings.shards, settings.namespace) as opened:
        at_us = settings.event_clock.now_us() if now is None else _instant(now)
        frame = opened.read(declared, frame_of_texts(plan_of(declared), keys), at_us)
    if as_json:
        typer.echo(frame.write_json())
    else:
        _print_records(frame)


@command(app, "serve")
def serve(
    module: Annotated[str, typer.Argument(help="A module with a `make_app` for Ray Serve")] = "serving.app",
    plain: Annotated[bool, typer.Option("--plain", help="Under uvicorn in this process, without Ray.")] = False,
) -> None:
    """Serve the project's app on HEADRACE_HOST and HEADRACE_PORT until stopped.

    Example: `headrace serve`
    """
    from headrace.serving.server import serve_on_ray, serve_plain

    root = project.activate()
    settings = load_settings()
    factory = project.load_object(f"{module}:make_http")
    if plain:
        serve_plain(factory, settings)
    else:
        serve_on_ray(factory, settings, root)


@command(app, "init")
def init(directory: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Start a new project from the template.

    Example: `headrace init shop`
    """
    files = project.init(directory)
    err.print(f"{len(files)} files in {directory}. Next: cd {directory} && headrace doctor", highlight=False)


@command(app, "doctor")
def doctor(as_json: Json = False) -> None:
    """Check versions, project, ports, Redis, broker and disk, and say what to do.

    Example: `headrace doctor`
    """
    from headrace.doctor import examine

    findings = examine(load_settings())
    if as_json:
        import orjson

        typer.echo(orjson.dumps([finding.as_dict() for finding in findings]))
    else:
        for finding in findings:
            err.print(finding.line(), highlight=False, soft_wrap=True)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@command(app, "health")
def health(role: Annotated[str, typer.Argument(help="materialize, train or serve")]) -> None:
    """Exit 0 if a process of this installation is well, for container health checks.

    Example: `headrace health serve`
    """
    from headrace.doctor import check_health

    check_health(role, load_settings())


@command(schemas_app, "check")
def schemas_check(as_json: Json = False) -> None:
    """Compare each event with its lock file; exit 1 on an incompatible change.

    Example: `headrace schemas check`
    """
    from headrace.schemas.evolution import check_lock

    root, events = _events()
    rows = [
        {"event": event.__name__, "field": change.field, "verdict": change.verdict, "message": change.message}
        for event in events
        for change in check_lock(event, root / "schemas")
    ]
    _print_rows(rows, as_json)
    if any(row["verdict"] == "incompatible" for row in rows):
        raise typer.Exit(1)
    err.print(f"{len(events)} events, {len(rows)} differences", highlight=False)


@command(schemas_app, "lock")
def schemas_lock(
    force: Annotated[bool, typer.Option("--force", help="Write although old events may become unreadable.")] = False,
) -> None:
    """Write the lock file of each event, to be committed.

    Example: `headrace schemas lock`
    """
    from headrace.schemas.evolution import write_lock

    root, events = _events()
    for event in events:
        err.print(str(write_lock(event, root / "schemas", force=force)), highlight=False)


@command(features_app, "list")
def features_list(as_json: Json = False) -> None:
    """List the views.

    Example: `headrace features list`
    """
    rows = [
        {"view": f"{view.__module__}:{view.__name__}", "entity": ", ".join(plan.entity), "features": len(plan.features)}
        for view, plan in _plans()
    ]
    _print_rows(rows, as_json)


@command(features_app, "show")
def features_show(view: View, as_json: Json = False) -> None:
    """Show a view's features.

    Example: `headrace features show features.customer:CustomerActivity`
    """
    from headrace.features import plan_of

    project.activate()
    plan = plan_of(project.load_object(view))
    _print_rows([{"feature": feature.full_name, "type": str(feature.dtype)} for feature in plan.features], as_json)


@command(models_app, "list")
def models_list(as_json: Json = False) -> None:
    """List published models, newest first.

    Example: `headrace models list`
    """
    from headrace.learners.directory import ModelDirectory

    directory = ModelDirectory(load_settings().model_dir)
    rows = []
    for version in sorted(directory.versions(), reverse=True):
        manifest = directory.manifest(version)
        known = {"rows": 0, "auc": float("nan"), "logloss": float("nan")} | manifest.metrics
        figures = {"rows": known["rows"], "auc": round(known["auc"], 4), "logloss": round(known["logloss"], 4)}
        rows.append({"version": version, "learner": manifest.learner, "created": _iso(manifest.created_us), **figures})
    _print_rows(rows, as_json)


@command(models_app, "show")
def models_show(version: Annotated[int | None, typer.Argument(help="Default: the newest.")] = None) -> None:
    """Print a model's manifest as JSON.

    Example: `headrace models show 12`
    """
    import orjson

    from headrace.learners.directory import ModelDirectory

    directory = ModelDirectory(load_settings().model_dir)
    version = directory.latest() if version is None else version
    if version is None:
        raise ConfigError(f"no model in {directory.path}: run pipelines.train, or set HEADRACE_MODEL_DIR")
    typer.echo(orjson.dumps(asdict(directory.manifest(version)), option=orjson.OPT_INDENT_2))


def _events() -> tuple[Path, list[type]]:
    from headrace.schemas import Event

    root = project.activate()
    return root, project.subclasses_in("schemas", Event, root)


def _plans() -> list[tuple[type, Any]]:
    from headrace.features import FeatureView, plan_of

    root = project.activate()
    return [(view, plan_of(view)) for view in project.subclasses_in("features", FeatureView, root)]


def _instant(text: str) -> int:
    """Microseconds of an ISO 8601 time; a time without a zone is UTC."""
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"--now {text!r}: write ISO 8601, e.g. 2011-10-01T12:00:00") from exc
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1e6)


def _iso(moment_us: int) -> str:
    """A moment in microseconds as ISO 8601, to the second."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment_us / 1e6, UTC).isoformat(timespec="seconds")


def _print_records(frame: Any) -> None:
    """One record a block, a feature a line: lists are too wide for a table."""
    from rich.table import Table

    for record in frame.iter_rows(named=True):
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, value in record.items():
            table.add_row(f"[cyan]{name}[/]", _escaped(value))
        out.print(table)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        import orjson

        typer.echo(orjson.dumps(rows))
        return
    if not rows:
        return
    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name, style="cyan" if name in {"view", "feature", "version"} else None, overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(value) for value in row.values()))
    out.print(table)


def _escaped(value: object) -> str:
    from rich.markup import escape

    return escape(str(value))


if __name__ == "__main__":
    app()
