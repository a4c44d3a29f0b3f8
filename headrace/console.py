"""What the commands share: the applications they register at, their common options, and how they print.

Data goes to stdout, words to stderr; an error is one line and exit code 1.
"""

import functools
import os
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from headrace.errors import HeadraceError
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
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Redis URL, or embedded://DIR. Default: HEADRACE_REDIS_URL.")
]
View = Annotated[str, typer.Argument(metavar="VIEW", help="module:Class, e.g. features.customer:CustomerActivity")]


def command(
    group: typer.Typer, name: str, *, uses_redis: bool = False
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose `HeadraceError`s become one line on stderr and exit code 1.

    `uses_redis`: HEADRACE_REDIS_URL may be `embedded://DIR`; then its Redis runs as long as the command does.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                settings = load_settings()
                configure_logs(settings.log_level, as_json=settings.log_json)
                if uses_redis and settings.redis_url.startswith("embedded://"):
                    from headrace.local import service_url

                    os.environ["HEADRACE_REDIS_URL"] = service_url(settings.redis_url)
                function(*args, **kwargs)
            except HeadraceError as exc:
                err.print(f"[bold red]error:[/] {escaped(exc)}", highlight=False, soft_wrap=True)
                raise typer.Exit(1) from exc
            except BrokenPipeError as exc:  # `headrace get ... | head` closes our stdout
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise typer.Exit(0) from exc

        group.command(name)(run)
        return function

    return register


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table for people, or JSON."""
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
        table.add_row(*(escaped(value) for value in row.values()))
    out.print(table)


def escaped(value: object) -> str:
    """A value as text that rich takes literally."""
    from rich.markup import escape

    return escape(str(value))
