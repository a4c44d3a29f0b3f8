"""The `headrace` command. Data goes to stdout, messages to stderr; an error is one line and exit code 1.

Heavy packages (torch, ray, bytewax) are imported by the command that needs them, so that `headrace get` starts fast.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace import project
from headrace.cli import local as cli_local  # noqa: F401 - it registers its commands
from headrace.cli import views as cli_views  # noqa: F401 - it registers its commands
from headrace.cli.console import (
    CsvTimeFormat,
    Json,
    Runner,
    all_finite,
    app,
    command,
    err,
    finite,
    models_app,
    out,
    prepare_services,
    print_rows,
    report_broken,
    say,
    schemas_app,
)
from headrace.cli.views import EventUrls
from headrace.errors import ConfigError, SnapshotError
from headrace.settings import load_settings


@command(app, "demo")
def demo(
    seconds: Annotated[float, typer.Option(min=5, callback=finite, help="Seconds to play live.")] = 90.0,
    speed: Annotated[
        float | None,
        typer.Option(
            min=1,
            callback=finite,
            help="Event-time seconds per wall-clock second. Default: pace the rest of the log evenly.",
        ),
    ] = None,
    requests_per_s: Annotated[float, typer.Option(min=0.1, callback=finite, help="Rankings asked for.")] = 60.0,
    warm_rows: Annotated[int, typer.Option(min=1_000, help="Newest history rows the model is warmed on.")] = 300_000,
    folder: Annotated[Path, typer.Option(help="Where data, logs and the warm start are kept.")] = Path(
        ".headrace/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report there as JSON.")] = None,
) -> None:
    """Run the main job on real input.

    Example: `headrace demo --seconds 60 --json report.json`
    """
    from headrace.demo.run import DemoOptions, run_demo

    root = project.activate()
    declared = project.load_object("pipelines.demo:demo")
    options = DemoOptions(seconds, speed, requests_per_s, warm_rows, folder, seed, json_path)
    if not run_demo(declared, root, options, out):
        raise typer.Exit(1)


@command(app, "run", uses_services=True, has_metrics=True)
def run(
    module: Annotated[str, typer.Argument(help="A module with a `flow`, e.g. pipelines.materialize")],
    runner: Runner = None,
    workers: Annotated[int, typer.Option(min=1, help="Bytewax workers: threads of this process.")] = 1,
) -> None:
    """Run a dataflow of the project until it is stopped.

    Example: `headrace run pipelines.materialize`
    """
    from headrace.pipelines.runner import run_flow

    project.activate()
    flow = project.load_object(f"{module}:flow")
    run_flow(flow, runner=runner, workers=workers, say=lambda line: say(f"{module} is up: {line}"))


@command(app, "train", has_metrics=True)
def train(
    learner: Annotated[str, typer.Argument(help="A learner of the project, or module:Class")],
    events: EventUrls,
    impressions: Annotated[
        str | None, typer.Option(metavar="URL", help="Served requests, to be joined with the events as labels.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--from", help="Learn from here on; earlier events feed features only. UTC.")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Leave out events from here on. UTC.")] = None,
    handover: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='JSON, {"topic/0": 1200}: first offsets that the files do not hold.'),
    ] = None,
    *,
    topic_follows: Annotated[
        bool, typer.Option("--topic-follows", help="The topic holds none of these events: go on from its start.")
    ] = False,
    then_live: Annotated[
        bool, typer.Option("--then-live", help="Then run the flow of the module, from where history ends.")
    ] = False,
    module: Annotated[
        str | None, typer.Option(help="Module with `make_step` and `flow`. Default: pipelines.train.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of the figures over time, .png or .svg.")
    ] = None,
    csv_time_format: CsvTimeFormat = None,
    as_json: Json = False,
) -> None:
    """Train a learner on history, in one pass, and publish its first model; then go on live.

    Example: `headrace train NextItem --events archive/ --then-live`
    """
    from headrace.cli.train import TrainOptions, go_live, moment, row_of, train_learner

    root = project.activate()
    settings = load_settings()
    if then_live:
        prepare_services(settings)
    options = TrainOptions(
        impressions=impressions,
        since=moment(since),
        until=moment(until),
        handover=handover,
        topic_follows=topic_follows,
        then_live=then_live,
        module=module,
        plot=plot,
        csv_time_format=csv_time_format,
    )
    print_rows([row_of(train_learner(learner, events, settings, root, options, say))], as_json)
    if then_live:
        go_live(module, say)


@command(app, "serve", uses_services=True)
def serve(
    module: Annotated[
        str, typer.Argument(help="A module with a function `make_http` that returns the HTTP application")
    ] = "serving.app",
    plain: Annotated[bool, typer.Option("--plain", help="Under uvicorn in this process, without Ray.")] = False,
) -> None:
    """Serve the project's app on HEADRACE_HOST and HEADRACE_PORT until stopped.

    Example: `headrace serve`
    """
    from headrace.serving.server import serve_on_ray, serve_plain

    root = project.activate()
    settings = load_settings()
    factory = project.load_object(f"{module}:make_http")
    if not callable(factory):
        raise ConfigError(f"{module}:make_http is no function; write `def make_http() -> FastAPI` in {module}")
    if plain:
        serve_plain(factory, settings, say=say)
    else:
        serve_on_ray(factory, settings, root, say=say)


@command(app, "load")
def load(
    url: Annotated[str, typer.Argument(help="The service, e.g. http://127.0.0.1:8000")],
    *,
    bodies: Annotated[
        Path, typer.Option(metavar="FILE", help="Requests, one JSON object a line, with entity and candidates.")
    ],
    rate: Annotated[list[float], typer.Option(min=0.1, callback=all_finite, help="Requests a second; repeatable.")],
    seconds: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds of each rate.")] = 30.0,
    route: Annotated[Literal["rank", "score"], typer.Option(help="rank logs an impression a request.")] = "rank",
    timeout_s: Annotated[float, typer.Option(min=0.001, callback=finite, help="Deadline of a request, in s.")] = 1.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections at most; further requests wait.")] = 256,
    api_key: Annotated[str | None, typer.Option(help="Sent as X-API-Key.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 0,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a row a request there.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Picture of latencies, .png or .svg.")] = None,
    as_json: Json = False,
) -> None:
    """Offer a running service requests on a schedule, and show how long each took from its scheduled time.

    Example: `headrace load http://127.0.0.1:8000 --bodies asks.jsonl --rate 100 --rate 200 --plot load.png`
    """
    from headrace.cli.load import LoadOptions, offer_load

    options = LoadOptions(bodies, rate, seconds, route, timeout_s, connections, api_key, seed, csv, plot)
    rows = offer_load(url, options, say)
    print_rows(rows, as_json)
    if not any(row["ok"] for row in rows):
        raise typer.Exit(1)


@command(app, "init")
def init(
    directory: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    bare: Annotated[
        bool, typer.Option("--bare", help="An event, views and a learner to fill in, in place of the shop and its log.")
    ] = False,
) -> None:
    """Start a new project from a template: an online shop with its log, or one to fill in.

    Example: `headrace init --bare podcasts`
    """
    from headrace.cli.scaffold import init as write_project

    files = write_project(directory, bare=bare)
    err.print(f"{len(files)} files in {directory}. Next: cd {directory} && headrace doctor", highlight=False)


@command(app, "doctor")
def doctor(as_json: Json = False) -> None:
    """Check versions, project, ports, Redis, broker and disk, and say what to do.

    Example: `headrace doctor`
    """
    from headrace.cli.doctor import examine

    findings = examine(load_settings())
    if as_json:
        import orjson

        typer.echo(orjson.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            err.print(finding.line(), highlight=False, soft_wrap=True)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@command(app, "health", uses_services=True)
def health(role: Annotated[str, typer.Argument(help="materialize, train, archive or serve")]) -> None:
    """Exit 0 if a process of this installation is well, for container health checks.

    Example: `headrace health serve`
    """
    from headrace.cli.doctor import check_health

    check_health(role, load_settings())


@command(schemas_app, "check")
def schemas_check(as_json: Json = False) -> None:
    """Compare each event with its lock file; exit 1 on an incompatible change.

    Example: `headrace schemas check`
    """
    from headrace.schemas.evolution import check_lock, stale_locks

    root, events, broken = _events()
    rows = [
        {"event": event.__name__, "field": change.field, "verdict": change.verdict, "message": change.message}
        for event in events
        for change in check_lock(event, root / "schemas")
    ]
    for path in [] if broken else stale_locks(events, root / "schemas"):
        message = f"no event of this name is declared any more; delete {path.name}, or declare the event again"
        rows.append({"event": path.stem, "field": "", "verdict": "stale", "message": message})
    counts = f"{len(events)} events, {len(rows)} differences"
    print_rows(rows, as_json, empty=counts)
    report_broken(broken)
    if any(row["verdict"] == "incompatible" for row in rows):
        raise typer.Exit(1)
    if rows:
        say(counts)


@command(schemas_app, "lock")
def schemas_lock(
    force: Annotated[bool, typer.Option("--force", help="Write although old events may become unreadable.")] = False,
) -> None:
    """Write the lock file of each event, to be committed.

    Example: `headrace schemas lock`
    """
    from headrace.schemas.evolution import write_lock

    root, events, broken = _events()
    for event in events:
        err.print(str(write_lock(event, root / "schemas", force=force)), highlight=False)
    report_broken(broken)


@command(models_app, "list")
def models_list(as_json: Json = False) -> None:
    """List published models, newest first.

    Example: `headrace models list`
    """
    from headrace.learners.publishing.directory import ModelDirectory

    directory = ModelDirectory(load_settings().model_dir)
    rows, broken = [], []
    for version in sorted(directory.versions(), reverse=True):
        try:
            manifest = directory.manifest(version)
        except SnapshotError as exc:
            broken.append(str(exc))
            continue
        of_run = {"rows": manifest.metrics.get("rows", 0)}
        figures = {name: round(manifest.metrics.get(name) or float("nan"), 4) for name in ("auc", "logloss")}
        named = {"version": version, "learner": manifest.learner, "created": _iso(manifest.created_us)}
        rows.append({**named, **of_run, **figures})
    print_rows(rows, as_json, empty=f"no models in {directory.path}: run pipelines.train, or set HEADRACE_MODEL_DIR")
    report_broken(broken)


@command(models_app, "show")
def models_show(version: Annotated[int | None, typer.Argument(help="Default: the newest.")] = None) -> None:
    """Print a model's manifest as JSON.

    Example: `headrace models show 12`
    """
    import orjson

    from headrace.learners.publishing.directory import ModelDirectory

    directory = ModelDirectory(load_settings().model_dir)
    version = directory.latest() if version is None else version
    if version is None:
        raise ConfigError(f"no model in {directory.path}: run pipelines.train, or set HEADRACE_MODEL_DIR")
    _require_version(version, directory.versions(), directory.path)
    typer.echo(orjson.dumps(asdict(directory.manifest(version)), option=orjson.OPT_INDENT_2))


@command(models_app, "rollback")
def models_rollback(
    version: Annotated[int, typer.Argument(help="Whose content is served again.")], as_json: Json = False
) -> None:
    """Publish an old model as a new version, which replicas take within a second; stop its training first.

    Example: `headrace models rollback 12`
    """
    from headrace.learners.publishing.directory import ModelDirectory

    settings = load_settings()
    directory = ModelDirectory(settings.model_dir, keep=settings.models_kept)
    _require_version(version, directory.versions(), directory.path)
    if version == directory.latest():
        raise ConfigError(f"model {version} in {directory.path} is the newest, which replicas have; name an older one")
    new = directory.rollback(version)
    print_rows([{"version": new, "content_of": version}], as_json)
    say(f"model {new} is {version} again; training that runs publishes its next model after it")


def _require_version(version: int, versions: Sequence[int], folder: Path) -> None:
    """Raise ConfigError unless `version` is one of `versions`, the versions in `folder`."""
    if version not in versions:
        listed = f"it has {versions[0]} to {versions[-1]}" if versions else "it has none"
        raise ConfigError(f"no model {version} in {folder}: {listed}; see `headrace models list`")


def _events() -> tuple[Path, list[type], list[str]]:
    """The project's folder, its events, and the errors of event modules that cannot be imported."""
    from headrace.schemas import Event

    root = project.activate()
    return root, *project.subclasses_in("schemas", Event, root)


def _iso(moment_us: int) -> str:
    """A time in microseconds as ISO 8601, to the second."""
    return datetime.fromtimestamp(moment_us / 1e6, UTC).isoformat(timespec="seconds")
