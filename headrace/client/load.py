"""Open-loop load: requests are sent on a schedule that does not wait for answers.

    schedule   |  |    | |   |  | |      Poisson arrivals at the rate asked for
    sent       |  |    |------late|      the generator was busy
    answered        |     |          |
    latency    scheduled -------> answered

A closed loop sends its next request after the last answer: if the service stalls for a second, nothing is sent during
that second, and the stall counts once (coordinated omission). Here all requests of that second are sent, and latency
counts from the scheduled time, so that delays of the service and of the generator are both visible.

Sources: G. Tene, "How NOT to measure latency" and wrk2; B. Schroeder et al., "Open versus closed: a cautionary tale",
NSDI 2006.

Knowingly not optimal: one process and one event loop; `late_ms` shows when the generator is the bottleneck.
"""

import asyncio
import codecs
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from headrace.client.client import AsyncClient
from headrace.client.load_connections import Connections
from headrace.errors import ConfigError

Route = Literal["rank", "score"]
OK = "ok"
REQUESTS_MAX = 5_000_000
"""Most requests of one rate: a row of some 100 bytes is kept for each."""
_NO_FIELDS = ("self", "timeout_s")  # arguments of the client's methods, not fields of a request
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Result of a run at one rate; `seconds` is the time until the last outcome.

    `requests` has a row for each scheduled request: `scheduled_s` since the start, `late_ms` from the scheduled time
    until it was sent, `latency_ms` from the scheduled time until its outcome, `outcome` ("ok", or a word for the
    error), and `model_version`.
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
        """Return figures of the run: counts, answers per second, latency percentiles of answered requests, failures."""
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


def check_rate(rate_per_s: float, seconds: float) -> None:
    """Check that a run does not send too many requests.

    Raises:
        ConfigError: there are more than `REQUESTS_MAX`.
    """
    if rate_per_s * seconds > REQUESTS_MAX:
        asked = f"{rate_per_s:g} a second for {seconds:g} s are {rate_per_s * seconds:.3g} requests"
        raise ConfigError(f"load: {asked}, {REQUESTS_MAX:,} at most: give a lower --rate or fewer --seconds")


def schedule_s(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Draw the times of Poisson arrivals in [0, seconds), in seconds, ascending.

    Raises:
        ConfigError: there are more than `REQUESTS_MAX`.

    >>> len(schedule_s(100.0, 10.0, 0))
    1012
    """
    check_rate(rate_per_s, seconds)
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rate_per_s * seconds))
    return np.sort(rng.uniform(0.0, seconds, count))


async def play(
    client: AsyncClient,
    connections: Connections,
    bodies: Sequence[Mapping[str, Any]],
    *,
    rate_per_s: float,
    seconds: float,
    timeout_s: float,
    route: Route = "rank",
    seed: int = 0,
) -> LoadRun:
    """Send `bodies` in turn to `route` for `seconds`, and return once all have an outcome.

    `client` first sends one body alone, so that a wrong address, key or body gives one clear error; `connections` send
    the counted requests, each with the deadline `timeout_s`.

    Raises:
        ClientError: the first body is not answered.
    """
    await getattr(client, route)(**bodies[0])
    requests = [connections.request(f"/v1/{route}", orjson.dumps(body)) for body in bodies]
    rows: list[tuple[float, float, float, str, int | None]] = []
    began_s = time.perf_counter()

    async def ask(due_s: float, request: bytes) -> None:
        late_s = time.perf_counter() - began_s - due_s
        outcome, version = await _outcome(connections, request, timeout_s)
        rows.append((due_s, late_s * 1e3, (time.perf_counter() - began_s - due_s) * 1e3, outcome, version))

    tasks = set()
    for number, due_s in enumerate(schedule_s(rate_per_s, seconds, seed).tolist()):
        # At least one turn of the event loop per request, even if several are due, to read arrived answers.
        await asyncio.sleep(max(began_s + due_s - time.perf_counter(), 0.0))
        task = asyncio.create_task(ask(due_s, requests[number % len(requests)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row").sort("scheduled_s")
    return LoadRun(rate_per_s, max(time.perf_counter() - began_s, seconds), table)


async def _outcome(connections: Connections, request: bytes, timeout_s: float) -> tuple[str, int | None]:
    """Send a request; return its outcome as a word, and the version of the model that answered."""
    try:
        async with asyncio.timeout(timeout_s):
            status, headers, body = await connections.send(request)
    except TimeoutError:
        return "deadline", None
    except OSError:
        return "not_reached", None
    except ValueError:
        return "unreadable", None
    if status == 200:
        version = headers.get("x-model-version", "")
        return OK, int(version) if _VERSION.fullmatch(version) else None
    try:
        return str(orjson.loads(body)["error"]), None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"http_{status}", None


_VERSION = re.compile("[0-9]{1,18}")
SCHEMA = {
    "scheduled_s": pl.Float64,
    "late_ms": pl.Float64,
    "latency_ms": pl.Float64,
    "outcome": pl.String,
    "model_version": pl.Int64,
}


def bodies_of(lines: Sequence[bytes], name: str) -> list[dict[str, Any]]:
    """Parse JSON lines into arguments of `AsyncClient.rank`, without `request_id`, so that each request gets a new one.

    Raises:
        ConfigError: a line is not a request, or there is none; `name` is the name of the file.
    """
    bodies = []
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text.strip():
            continue
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as exc:
            raise ConfigError(f"{name}, line {number}: no JSON ({exc}); write one request a line") from exc
        if not isinstance(body, dict) or not {"entity", "candidates"} <= set(body):
            raise ConfigError(f"{name}, line {number}: no request; write an object with entity and candidates")
        if wrong := [field for field in _NO_FIELDS if field in body]:
            raise ConfigError(f"{name}, line {number}: {wrong[0]!r} is no field of a request; leave it out")
        body.pop("request_id", None)
        bodies.append(body)
    if not bodies:
        raise ConfigError(f"{name} holds no request; write one JSON object a line, with entity and candidates")
    return bodies
