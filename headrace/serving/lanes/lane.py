"""Lanes: natural batching. One thread takes all waiting requests and works on them as one batch.

    event loop  submit -> queue -> thread: all that wait, up to `rows_max` rows -> work(batch) -> event loop: answers

There is no timer: a lone request starts at once, and while a batch is in progress the next one gathers. The event loop
is woken once per batch, and the next batch begins when the answers of the last are sent, so that the next requests of
the same clients join it. Otherwise the thread would take the GIL first (16 callers: batches of 8 instead of 14).
Large requests have their own lane, so that small ones never wait behind them.

A request is refused if its wait, estimated from the recent cost of requests, would pass its deadline. Once its deadline
has passed it is answered at once. After it has waited for a while its client is watched, and the request is dropped if
the client hangs up. Both cost one timer per request, which a quick answer cancels.
"""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import Receive

from headrace.serving.queries import Query
from headrace.serving.refusals import Refusal
from headrace.serving.tracing import submitted

WATCH_S = 0.05
"""How long a request waits before its client is watched; with less, every request would need a task."""
SENT_S = 0.05
"""Longest time that the next batch waits for the answers of the last to be sent."""
TURNS = 2
"""Extra turns of the event loop after answers are delivered, in which it parses the clients' next requests."""
SMOOTHING = 0.2
"""Weight of the last batch in the moving averages of seconds per request and per batch."""

WAITING = Gauge("headrace_requests_waiting", "Requests that wait for the scoring thread, or are worked on.", ["lane"])
BATCH_REQUESTS = Histogram(
    "headrace_batch_requests", "Requests of a scored batch.", ["lane"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
SHED = Counter("headrace_requests_shed_total", "Requests refused unread, or left undone.", ["reason"])

log = structlog.get_logger(__name__)

Outcome = Any
"""Result of a job: the reply, or the exception that ended it."""


class ClientGoneError(Exception):
    """The client hung up, so no answer is needed."""


class Job:
    """One request in progress: its query, its deadline, and the future of its outcome. Belongs to the event loop."""

    __slots__ = (
        "as_arrow",
        "ask",
        "deadline_s",
        "future",
        "is_over",
        "loop",
        "query",
        "receive",
        "request_id",
        "route",
        "timer",
        "trace",
        "watcher",
    )

    def __init__(
        self,
        route: str,
        ask: Any,
        query: Query,
        deadline_s: float,
        receive: Receive,
        *,
        request_id: str,
        as_arrow: bool = False,
    ) -> None:
        self.route = route
        self.request_id = request_id
        self.trace = submitted()
        self.as_arrow = as_arrow  # whether the answer is an Arrow stream
        self.ask = ask
        self.query = query
        self.deadline_s = deadline_s  # time.monotonic
        self.receive = receive
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Outcome] = self.loop.create_future()
        self.is_over = False  # no longer waited for; read by the scoring thread before it begins
        self.timer: asyncio.TimerHandle | None = None
        self.watcher: asyncio.Task[None] | None = None

    def end(self, outcome: Outcome) -> None:
        """Set the outcome, unless the job already has one."""
        if self.is_over:
            return
        self.is_over = True
        if self.timer is not None:
            self.timer.cancel()
        if self.watcher is not None:
            self.watcher.cancel()
        if not self.future.done():
            self.future.set_result(outcome)


class Lane:
    """One scoring thread and the requests that wait for it. All methods but `close` are for the event loop only.

    Args:
        name: for the thread and metrics.
        work: called in the lane's thread with the jobs of a batch; returns an outcome for each. Must not raise.
        waiting_max: requests that may wait or be in progress at once.
        rows_max: number of candidates from which on a batch takes no further request.
        on_thread: called once with the lane's thread after it has started.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Job]], Sequence[Outcome]],
        *,
        waiting_max: int,
        rows_max: int,
        on_thread: Callable[[threading.Thread], None] | None = None,
    ) -> None:
        self._name = name
        self._on_thread = on_thread
        self._work = work
        self._waiting_max = waiting_max
        self._rows_max = rows_max
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting = self._waiting_rows = 0  # used on the event loop only
        # Moving averages of seconds per request and per batch: written by the thread, read by the event loop.
        self._request_s = self._batch_s = 0.0
        self._sent = threading.Event()  # set once the answers of the last batch are sent
        self._thread: threading.Thread | None = None
        self._waiting_gauge = WAITING.labels(lane=name)
        self._batch_sizes = BATCH_REQUESTS.labels(lane=name)

    def expected_wait_s(self) -> float:
        """Estimate the seconds until a request that arrives now would begin, from the recent cost of requests.

        The lesser of two estimates: the waiting requests one by one, or the batches that they fill. A lone request
        costs as much as a batch, so after lone requests the first estimate alone would refuse most of a burst.
        """
        batches = 1 + self._waiting_rows // self._rows_max
        return min(self._waiting * self._request_s, batches * self._batch_s)

    def require_room(self, deadline_s: float) -> None:
        """Check that a request with the deadline `deadline_s` (`time.monotonic`) may wait here.

        Raises:
            Refusal: 429, too many requests wait, or it would not begin in time.
        """
        if self._waiting >= self._waiting_max:
            SHED.labels(reason="waiting_max").inc()
            raise Refusal(
                429,
                "too_many_requests",
                f"{self._waiting} requests in flight, {self._waiting_max} allowed in this replica",
                "try again after the seconds of Retry-After, or add replicas",
            )
        wait_s = self.expected_wait_s()
        if time.monotonic() + wait_s > deadline_s:
            SHED.labels(reason="expected_wait").inc()
            raise Refusal(
                429,
                "too_many_requests",
                f"{self._waiting} requests are waiting: this one would be begun after its deadline",
                "try again after the seconds of Retry-After, allow more time, or add replicas",
                retry_after_s=max(math.ceil(wait_s), 1),
            )

    async def submit(self, job: Job) -> Outcome:
        """Queue `job` and wait for its outcome.

        Raises:
            Refusal: 429, see `require_room`; 503, its deadline passed.
            ClientGoneError: its client hung up.
        """
        self.require_room(job.deadline_s)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"headrace-{self._name}", daemon=True)
            self._thread.start()
            if self._on_thread is not None:
                self._on_thread(self._thread)
        self._waiting += 1
        self._waiting_rows += len(job.query.candidates)
        self._waiting_gauge.inc()
        left_s = max(job.deadline_s - time.monotonic(), 0.0)
        job.timer = job.loop.call_later(min(WATCH_S, left_s), _watch, job)
        self._queue.put(job)
        try:
            outcome = await job.future
        finally:
            job.end(None)
        if not isinstance(outcome, Exception) and time.monotonic() > job.deadline_s:
            outcome = _deadline_over()  # ready in time, but this turn of the event loop came late
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Answer all submitted jobs, then stop."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            if self._rows_max > 1 and not self._queue.empty():
                self._sent.wait(SENT_S)
            job = self._queue.get()
            jobs, rows = [], 0
            while job is not None:
                jobs.append(job)
                rows += len(job.query.candidates)
                if rows >= self._rows_max or self._queue.empty():
                    break
                job = self._queue.get()
            is_closing = job is None
            if jobs:
                self._work_on(jobs)

    def _work_on(self, jobs: list[Job]) -> None:
        wanted = [job for job in jobs if not job.is_over]
        outcomes: Sequence[Outcome] = ()
        if wanted:
            started_s = time.perf_counter()
            outcomes = self._work(wanted)
            seconds = time.perf_counter() - started_s
            self._request_s += SMOOTHING * (seconds / len(wanted) - self._request_s)
            self._batch_s += SMOOTHING * (seconds - self._batch_s)
            self._batch_sizes.observe(len(wanted))
        for loop in dict.fromkeys(job.loop for job in jobs):
            pairs = [(job, outcome) for job, outcome in zip(wanted, outcomes, strict=True) if job.loop is loop]
            rows = [len(job.query.candidates) for job in jobs if job.loop is loop]
            self._sent.clear()
            try:
                loop.call_soon_threadsafe(self._deliver, pairs, len(rows), sum(rows))
            except RuntimeError:  # the loop is closed: its answers are no longer awaited
                self._leave(len(rows), sum(rows))
                self._sent.set()
                log.warning("answers_undelivered", requests=len(pairs))

    def _deliver(self, pairs: Sequence[tuple[Job, Outcome]], count: int, rows: int) -> None:
        self._leave(count, rows)
        for job, outcome in pairs:
            job.end(outcome)
        asyncio.get_running_loop().call_soon(self._turned, TURNS)  # after the jobs' own tasks, which send

    def _turned(self, turns_left: int) -> None:
        """Set `_sent` after `turns_left` more turns of the event loop, which calls this once per turn."""
        if turns_left:
            asyncio.get_running_loop().call_soon(self._turned, turns_left - 1)
        else:
            self._sent.set()

    def _leave(self, count: int, rows: int) -> None:
        """Stop counting `count` requests of `rows` candidates as waiting."""
        self._waiting -= count
        self._waiting_rows -= rows
        self._waiting_gauge.dec(count)


def _watch(job: Job) -> None:
    """Watch the client of a job that has waited for a while."""
    if not job.is_over:
        job.watcher = job.loop.create_task(_until_over(job))


async def until_gone(receive: Receive) -> None:
    """Return when the client of a request, whose body was read, hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_over(job: Job) -> None:
    """End `job` when its client hangs up or its deadline passes."""
    try:
        async with asyncio.timeout(job.deadline_s - time.monotonic()):
            await until_gone(job.receive)
    except TimeoutError:
        outcome: Exception = _deadline_over()
    else:
        SHED.labels(reason="client_gone").inc()
        outcome = ClientGoneError()
    job.watcher = None
    job.end(outcome)


def _deadline_over() -> Refusal:
    """Count and return the refusal of a request whose deadline has passed."""
    SHED.labels(reason="deadline").inc()
    fix = "try again after the seconds of Retry-After, or allow more time"
    return Refusal(503, "deadline_exceeded", "the request's time is over", fix)
