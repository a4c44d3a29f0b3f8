"""Typer applications, common options, and printing for all commands.

Data goes to stdout, messages to stderr; an error is one line and exit code 1.
"""

import contextlib
import functools
import importlib.metadata
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn, ParamSpec

import typer
from rich.console import Console
from typer.core import TyperCommand

from headrace.errors import HeadraceError, ServiceError, StoreUnavailableError
from headrace.extras import missing_of
from headrace.settings import Settings, SettingsWarning, load_settings
from headrace.stack_state import EMBEDDED
from headrace.telemetry import configure_logs, serve_metrics

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

WIDTH_OF_FILES = 1_000
"""Columns of a table that goes into a file or a pipe, where no line need be broken."""


def stdout_console() -> Console:
    """A console for data: as wide as the terminal or COLUMNS says; without either, no table is folded."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDTH_OF_FILES)


out, err = stdout_console(), Console(stderr=True)
P = ParamSpec("P")


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"headrace {importlib.metadata.version('headrace')}", highlight=False)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # its callback prints it


def finite(number: float | None) -> float | None:
    """Callback of a numeric option that rejects "inf" and "nan", which Python parses as numbers."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not finite")
    return number


def all_finite(numbers: list[float]) -> list[float]:
    """Callback of a repeatable numeric option; see `finite`."""
    for number in numbers:
        finite(number)
    return numbers


class KeysCommand(TyperCommand):
    """A command whose arguments may be negative numbers: `get VIEW -5 -7,books --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by click to parse the command line; marks negative numbers, which click would take for options."""
        end = args.index("--") if "--" in args else len(args)
        marked = [_MARK + word if _NEGATIVE.match(word) else word for word in args[:end]] + args[end:]
        rest = super().parse_args(ctx, marked)
        ctx.params = {name: _unmarked(value) for name, value in ctx.params.items()}
        return rest


_NEGATIVE = re.compile(r"-[0-9.]")
_MARK = "\0"
"""Prefix of a word that click must not take for an option; words of a command line cannot contain it."""


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    return [_unmarked(each) for each in value] if isinstance(value, list | tuple) else value


Runner = Annotated[
    Literal["bytewax", "loop"] | None,
    typer.Option("--runner", help="What runs the flow. Default: bytewax where it is installed, else the plain loop."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Redis URL, or embedded://DIR. Default: HEADRACE_REDIS_URL.")
]
CsvTimeFormat = Annotated[
    str | None,
    typer.Option(
        "--csv-time-format",
        metavar="FORMAT",
        help="Times in CSV files that are not ISO 8601, as for strptime: '%d/%m/%Y %H:%M'.",
    ),
]
View = Annotated[str, typer.Argument(metavar="VIEW", help="module:Class, e.g. features.customer:CustomerActivity")]


def command(
    group: typer.Typer,
    name: str,
    *,
    uses_services: bool = False,
    has_metrics: bool = False,
    kind: type[TyperCommand] = TyperCommand,
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command that reports `HeadraceError` and `OSError` as one line and exit code 1.

    `uses_services`: it uses the Redis and broker of the settings, so those of `headrace up` must be running.
    `has_metrics`: it serves /metrics while it runs, if HEADRACE_METRICS_PORT is set.
    `kind`: click's class for the command.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            settings: Settings | None = None
            try:
                settings = _settings()
                configure_logs(settings.log_level, as_json=settings.log_json)
                if uses_services:
                    prepare_services(settings)
                with _metrics(settings) if has_metrics else contextlib.nullcontext():
                    function(*args, **kwargs)
            except ModuleNotFoundError as exc:
                error = missing_of(exc)
                if error is None:
                    raise
                _fail(error, str(error))
            except HeadraceError as exc:
                is_log = isinstance(exc, ServiceError)  # it may end with the last lines of a log
                line = str(exc) if is_log else " ".join(str(exc).split())
                _fail(exc, line + way_to_services(exc, settings))
            except BrokenPipeError as exc:  # `headrace get ... | head` closes stdout
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise typer.Exit(0) from exc
            except OSError as exc:
                _fail(exc, _words_of(exc))

        group.command(name, cls=kind)(run)
        return function

    return register


def way_to_services(exc: HeadraceError, settings: Settings | None) -> str:
    """Advice for a Redis or broker that does not answer at the default address; empty if the address was configured."""
    if settings is None or settings.stack is not None:
        return ""
    is_redis = isinstance(exc, StoreUnavailableError)
    name, address = ("redis_url", settings.redis_url) if is_redis else ("brokers", settings.brokers)
    is_away = is_redis or "does not answer" in str(exc)
    if name in settings.model_fields_set or not is_away or address not in str(exc):
        return ""
    return f"; HEADRACE_{name.upper()} is not set: set it, or run the project's own Redis and broker with `headrace up`"


def prepare_services(settings: Settings) -> None:
    """Check that required services run, and let processes in other working directories find an embedded Redis.

    Raises:
        ServiceError: the services of the project's `headrace up` are not running.
    """
    stack = settings.stack
    if stack is not None and not stack.is_ready:
        state = (
            "are starting: try again in a moment" if stack.is_running else "do not run: start them with `headrace up`"
        )
        raise ServiceError(
            f"the Redis and the broker of this project {state}, or set HEADRACE_REDIS_URL and HEADRACE_BROKERS"
        )
    if settings.redis_url.startswith(EMBEDDED):
        from headrace.local.embedded_url import folder_of

        os.environ["HEADRACE_REDIS_URL"] = f"{EMBEDDED}{folder_of(settings.redis_url)}"


@contextlib.contextmanager
def _metrics(settings: Settings) -> Iterator[None]:
    """Serve this process's metrics during the block, if a port is configured."""
    if settings.metrics_port is None:
        yield
        return
    with serve_metrics(settings.host, settings.metrics_port) as port:
        say(f"metrics: {settings.serving_url_of(port)}/metrics")
        yield


def _settings() -> Settings:
    """Load the settings from the environment, and print a warning for each unknown variable."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SettingsWarning)
        settings = load_settings()
    for warning in caught:
        if issubclass(warning.category, SettingsWarning):
            say(f"warning: {warning.message}")
    return settings


def say(line: str) -> None:
    """Print a line to stderr."""
    err.print(escaped(line), highlight=False, soft_wrap=True)


def _words_of(exc: OSError) -> str:
    """Message and path of an operating system error."""
    if isinstance(exc, shutil.Error):  # a list of all files that could not be copied
        return str(exc.args[0][0][2])
    return f"{exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}"


def _fail(exc: Exception, line: str) -> NoReturn:
    """End the command with a one-line error and exit code 1."""
    err.print(f"[bold red]error:[/] {escaped(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from exc


def print_rows(rows: list[dict[str, Any]], as_json: bool, *, empty: str = "nothing") -> None:
    """Print rows as a table, or as JSON; without rows, print `empty` instead of a table."""
    from rich.table import Table

    if as_json:
        import orjson

        typer.echo(orjson.dumps(rows))
        return
    if not rows:
        say(empty)
        return
    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name, style="cyan" if name in {"view", "feature", "version"} else None, overflow="fold")
    for row in rows:
        table.add_row(*(escaped(value) for value in row.values()))
    out.print(table)


def report_broken(broken: Sequence[str]) -> None:
    """Print a line for each project module that cannot be imported, and exit with code 1 if there are any."""
    for words in broken:
        err.print(f"[bold red]error:[/] {escaped(' '.join(words.split()))}", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def escaped(value: object) -> str:
    """A value as text, escaped so that rich prints it literally."""
    from rich.markup import escape

    return escape(str(value))
