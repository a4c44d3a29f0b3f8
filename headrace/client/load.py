"""Open-loop load: requests leave on a schedule that does not wait for answers.

    schedule   |  |    | |   |  | |      Poisson arrivals at the rate asked for
    sent       |  |    |------late|      the generator was busy
    answered        |     |          |
    latency    scheduled -------> answered

A closed loop sends its next request when the last is answered, so that a service which stops for a second is asked
nothing meanwhile, and the second counts once (coordinated omission). Here the requests of that second are all sent, and
latency counts from the scheduled time, so that neither a slow service nor a slow generator hides.

Sources: G. Tene, "How NOT to measure latency" and wrk2; B. Schroeder et al., "Open versus closed: a cautionary tale",
NSDI 2006.

Knowingly not optimal: one process and one event loop, which send some hundred requests a second; `late_ms` shows when
the generator is the bottleneck.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.client.client import AsyncClient
from headrace.errors import ClientError, ConfigError, ResponseError

Route = Literal["rank", "score"]
OK = "ok"
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What came of one rate.

    `requests` has a row for each scheduled request: `scheduled_s` since the start, `late_ms` from there until it was
    sent, `latency_ms` from there until its outcome, `outcome` ("ok", or the word of the error), and `model_version`.
    """

    rate_per_s: float
    seconds: float
    requests: pl.DataFrame

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Latencies of the answered requests, ascending."""
        answered = self.requests.filter(outcome=OK)
        return np.sort(answered["latency_ms"].to_numpy())

    def summary(self) -> dict[str, Any]:
        """Figures of the run: counts, answers a second, percentiles of answered requests, and failures by word."""
        latency_ms, count = self.latency_ms, self.requests.height
        failures = Counter(self.requests.filter(pl.col("outcome") != OK)["outcome"].to_list())
        late_ms = float(np.percentile(self.requests["late_ms"].to_numpy(), 99)) if count else 0.0
        shown = {
            name: round(float(np.percentile(latency_ms, share)), 2) if len(latency_ms) else None
            for name, share in PERCENTILES.items()
        }
        return {
            "rate_per_s": self.rate_per_s,
            "sent": count,
            "ok": len(latency_ms),
            "ok_per_s": round(len(latency_ms) / self.seconds, 1),
            **shown,
            "late_p99_ms": round(late_ms, 2),
            "failed": ", ".join(f"{word} {failures[word]}" for word in sorted(failures)),
        }


def schedule_s(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Times of Poisson arrivals in [0, seconds), in seconds, ascending.

    >>> len(schedule_s(100.0, 10.0, 0))
    1012
    """
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rate_per_s * seconds))
    return np.sort(rng.uniform(0.0, seconds, count))


async def play(
    client: AsyncClient,
    bodies: Sequence[Mapping[str, Any]],
    *,
    rate_per_s: float,
    seconds: float,
    route: Route = "rank",
    seed: int = 0,
) -> LoadRun:
    """Send `bodies` in turn to `route` for `seconds`, and return once all have an outcome.

    Raises:
        ClientError: the first body, which is sent alone beforehand, is not answered.
    """
    call = getattr(client, route)
    await _send(call, bodies[0])
    times_s = schedule_s(rate_per_s, seconds, seed)
    rows: list[tuple[float, float, float, str, int | None]] = []
    began_s = time.perf_counter()

    async def ask(due_s: float, body: Mapping[str, Any]) -> None:
        late_s = time.perf_counter() - began_s - due_s
        version = None
        try:
            version, outcome = await _send(call, body), OK
        except ClientError as exc:
            outcome = exc.code if isinstance(exc, ResponseError) else _word(exc)
        rows.append((due_s, late_s * 1e3, (time.perf_counter() - began_s - due_s) * 1e3, outcome, version))

    tasks = set()
    for number, due_s in enumerate(times_s.tolist()):
        await asyncio.sleep(max(began_s + due_s - time.perf_counter(), 0.0))
        task = asyncio.create_task(ask(due_s, bodies[number % len(bodies)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return LoadRun(rate_per_s, seconds, pl.DataFrame(rows, schema=_SCHEMA, orient="row").sort("scheduled_s"))


_SCHEMA = {
    "scheduled_s": pl.Float64,
    "late_ms": pl.Float64,
    "latency_ms": pl.Float64,
    "outcome": pl.String,
    "model_version": pl.Int64,
}


async def _send(call: Any, body: Mapping[str, Any]) -> int:
    answer = await call(**body)
    version: int = answer.model_version
    return version


def _word(exc: ClientError) -> str:
    """A short word of an error without an answer, such as "deadline"."""
    return type(exc).__name__.removesuffix("Error").lower()


def bodies_of(lines: Sequence[bytes], name: str) -> list[dict[str, Any]]:
    """Requests of JSON lines, as the arguments of `AsyncClient.rank`; a `request_id` is left out, each gets a new one.

    Raises:
        ConfigError: a line is no request, or there is none; `name` is the file's.
    """
    import orjson

    bodies = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            raise ConfigError(f"{name}, line {number}: no JSON ({exc}); write one request a line") from exc
        if not isinstance(body, dict) or not {"entity", "candidates"} <= set(body):
            raise ConfigError(f"{name}, line {number}: no request; write an object with entity and candidates")
        body.pop("request_id", None)
        bodies.append(body)
    if not bodies:
        raise ConfigError(f"{name} holds no request; write one JSON object a line, with entity and candidates")
    return bodies
