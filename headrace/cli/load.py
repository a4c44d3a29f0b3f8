"""`headrace load`: send requests to a running service at several rates, one after the other."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from headrace.client import AsyncClient
from headrace.client.call import TIMEOUT_MS_MAX
from headrace.client.load import LoadRun, Route, bodies_of, check_rate, play
from headrace.client.load_connections import Connections
from headrace.client.load_plot import plot_load
from headrace.errors import ConfigError
from headrace.pictures import check_plot

LATE_MS_MAX = 10.0
"""99th percentile of the generator's own delay in ms, above which it is reported as the bottleneck."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options of `headrace load`; see its help."""

    bodies: Path
    rates: Sequence[float]
    seconds: float
    route: Route
    timeout_s: float
    connections_max: int
    api_key: str | None
    seed: int
    csv: Path | None
    plot: Path | None


def offer_load(url: str, options: LoadOptions, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Offer each rate, write the files, and return a row of figures per rate.

    Raises:
        ConfigError: a file cannot be read or written, or is not valid.
        ClientError: the service does not answer the first request.
    """
    for path, check in ((options.plot, check_plot), (options.csv, _check_folder)):
        if path is not None:
            check(path)
    for rate in options.rates:
        check_rate(rate, options.seconds)
    with options.bodies.open("rb") as file:
        bodies = bodies_of(file.readlines(), str(options.bodies))
    runs = asyncio.run(_play_all(url, bodies, options))
    if options.csv is not None:
        pl.concat(run.requests.select(pl.lit(run.rate_per_s).alias("rate_per_s"), pl.all()) for run in runs).write_csv(
            options.csv
        )
    if options.plot is not None:
        plot_load(runs, options.plot)
    rows = [run.summary() for run in runs]
    for row in rows:
        if not row["sent"]:
            say(f"{row['rate_per_s']:g}/s: no request fell into {options.seconds:g} s; give more --seconds")
        if (late_ms := row["late_p99_ms"]) > LATE_MS_MAX:
            words = f"requests were sent up to {late_ms:g} ms late (p99), which is in their latency"
            say(f"{row['rate_per_s']:g}/s: {words}: this machine cannot offer so many")
    return rows


async def _play_all(url: str, bodies: Sequence[dict[str, Any]], options: LoadOptions) -> list[LoadRun]:
    headers = {"x-request-timeout-ms": str(max(min(int(options.timeout_s * 1_000), TIMEOUT_MS_MAX), 1))}
    if options.api_key is not None:
        headers["x-api-key"] = options.api_key
    async with (
        AsyncClient(url, api_key=options.api_key, timeout_s=options.timeout_s) as client,
        Connections(url, headers, options.connections_max) as connections,
    ):
        return [
            await play(
                client,
                connections,
                bodies,
                rate_per_s=rate,
                seconds=options.seconds,
                timeout_s=options.timeout_s,
                route=options.route,
                seed=options.seed,
            )
            for rate in options.rates
        ]


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"csv {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"csv {path}: is a folder; write the name of a file")
