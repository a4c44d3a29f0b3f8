"""Play a log on an accelerated event clock: rows become events of a topic, and some request a ranking first.

Timeline of a row that requests a ranking, and one that does not::

    event clock  ----t1-----------------t2-------->
    row 1            |--> POST rank (as of t1) --> answer --> event to the broker
    row 2                               |--> event to the broker

The rows that request a ranking are chosen before the start: every k-th eligible one, a fair sample of the log. While
`IN_FLIGHT_MAX` requests are in flight, further rows become events without a request, and are counted as skipped.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray

from headrace.client import AsyncClient
from headrace.clock import Clock, wall_us
from headrace.errors import ClientError
from headrace.streams.kafka_writer import TopicWriter

TICK_S = 0.02  # interval in which due rows are sent to the producer
ANSWER_S_MAX = 10.0
IN_FLIGHT_MAX = 32  # requests

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """A ranking request: the row of the log, the entity key, and the candidates in random order."""

    row: int
    entity: int | str
    candidates: Sequence[int | str]

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return f"request-{self.row}"


@dataclass(slots=True)
class Played:
    """Counts and times of a run. Times are wall time in µs; latencies are measured by the client, in ms."""

    events: int = 0
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    latency_ms: list[float] = field(default_factory=list)
    first_answer_us: dict[int, int] = field(default_factory=dict)  # model version -> wall time of its first answer
    errors: list[str] = field(default_factory=list)


def plan_asks(
    times_us: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    candidates: NDArray[np.object_],
    entities: NDArray[np.object_],
    *,
    requests_per_s: float,
    seconds: float,
    candidates_count: int,
    popularity_rows: int,
    first: int,
    end_us: int,
    seed: int,
) -> list[Ask]:
    """Choose the rows from `first` on that request a ranking before `end_us`, and draw their candidates.

    Args:
        times_us: event times (n,) ascending, of the same rows as `eligible` (n,), `candidates` (n,), `entities` (n,).
        requests_per_s: mean rate in wall time over the `seconds` of the run.
        end_us: event time from which on no row requests a ranking.
        popularity_rows: the other candidates are distinct draws from this many preceding eligible rows.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(eligible)
    live = rows[(rows >= first) & (times_us[rows] < end_us)]
    every = max(len(live) / max(requests_per_s * seconds, 1.0), 1.0)
    chosen = live[np.arange(every / 2, len(live), every).astype(np.int64)]
    asks = []
    for row in chosen.tolist():
        end = int(np.searchsorted(rows, row))
        pool = candidates[rows[max(end - popularity_rows, 0) : end]]
        others = _draw(pool, candidates[row], candidates_count - 1, rng)
        offered = [candidates[row], *others]
        asks.append(Ask(row, entities[row], [offered[index] for index in rng.permutation(len(offered))]))
    return asks


def _draw(pool: NDArray[np.object_], chosen: object, count: int, rng: np.random.Generator) -> list[int | str]:
    """Draw up to `count` distinct values from `pool`, without `chosen`."""
    drawn: dict[int | str, None] = {}
    for _ in range(8):  # rounds; a pool of few distinct values may give fewer
        for value in pool[rng.integers(0, len(pool), 2 * count)] if len(pool) else ():
            if value != chosen:
                drawn[value] = None
            if len(drawn) == count:
                return list(drawn)
    return list(drawn)


class Player:
    """A player of rows of a log, which plays them once, in one asyncio loop."""

    def __init__(
        self,
        frame: pl.DataFrame,
        times_us: NDArray[np.int64],
        asks: Sequence[Ask],
        *,
        clock: Clock,
        writer: TopicWriter,
        url: str,
        entity: str,
        request_id: str,
        first: int,
        end: int,
    ) -> None:
        """Take rows [first, end) of `frame`."""
        self.played = Played()
        self._frame = frame
        self._times_us = times_us
        self._asks = {ask.row: ask for ask in asks}
        self._asking = np.zeros(len(times_us), np.bool_)
        self._asking[list(self._asks)] = True
        self._clock = clock
        self._writer = writer
        self._url = url
        self._entity = entity
        self._request_id = request_id
        self._next = first
        self._end = end
        self._answered: dict[int, str] = {}  # row -> id of its request, once answered
        self._in_flight: set[asyncio.Task[None]] = set()

    async def play(self) -> Played:
        """Play all rows; returns once all are in the topic."""
        async with AsyncClient(self._url, timeout_s=ANSWER_S_MAX, connections_max=IN_FLIGHT_MAX) as client:
            while self._next < self._end:
                self._send_due(client)
                await asyncio.sleep(TICK_S)
            await asyncio.gather(*self._in_flight)
        self._write([], self._answered)
        await asyncio.to_thread(self._writer.flush)
        return self.played

    def _send_due(self, client: AsyncClient) -> None:
        end = min(int(np.searchsorted(self._times_us, self._clock.now_us(), side="right")), self._end)
        due, answered = np.arange(self._next, end), self._answered
        self._next, self._answered = max(end, self._next), {}
        asking = due[self._asking[due]]
        plain = due[~self._asking[due]].tolist()
        for row in asking.tolist():
            if len(self._in_flight) >= IN_FLIGHT_MAX:
                self.played.skipped += 1
                plain.append(row)
            else:
                task = asyncio.create_task(self._ask(client, self._asks[row]))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)
        self._write(plain, answered)

    def _write(self, plain: list[int], answered: dict[int, str]) -> None:
        """Write rows as events; rows with a request get its id."""
        rows = sorted([*plain, *answered])
        if rows:
            named = pl.Series(self._request_id, [answered.get(row) for row in rows], dtype=pl.String)
            self._writer.write(self._frame[rows].with_columns(named))
            self.played.events += len(rows)

    async def _ask(self, client: AsyncClient, ask: Ask) -> None:
        started = time.perf_counter()
        try:
            answer = await client.rank(
                {self._entity: ask.entity},
                ask.candidates,
                request_id=ask.request_id,
                event_time=int(self._times_us[ask.row]),
            )
        except ClientError as exc:
            self._fail(ask, f"{type(exc).__name__}: {exc}")
        else:
            if len(answer.ranked) == len(ask.candidates):
                self.played.ok += 1
            else:
                self._fail(ask, f"{len(answer.ranked)} of {len(ask.candidates)} candidates came back")
            self.played.latency_ms.append((time.perf_counter() - started) * 1_000)
            self.played.first_answer_us.setdefault(answer.model_version, wall_us())
        self._answered[ask.row] = ask.request_id

    def _fail(self, ask: Ask, error: str) -> None:
        self.played.failed += 1
        self.played.errors.append(error)
        log.warning("request_failed", row=ask.row, error=error)
