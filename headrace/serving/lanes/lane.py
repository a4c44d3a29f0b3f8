"""Lanes: natural batching. One thread takes all requests that wait, and works on them as one batch.

    event loop  submit -> queue -> thread: all that wait, up to `rows_max` rows -> work(batch) -> event loop: answers

There is no timer: a lone request is taken at once, and while a batch is worked on the next one gathers. The event loop
is woken once a batch, and the next batch begins when the answers of the last are sent: what their clients ask next then
joins those that wait, where the thread would otherwise take the interpreter first (16 callers: batches of 14 in place
of 8). Large requests have a lane of their own, so that small ones never wait behind them.

A request is refused when it would wait for longer than it may, judged by what those before it cost lately. One whose
deadline passes is answered there and then; one that has waited for a while is watched, so that the work of a client
that hung up is dropped. Both cost one timer a request, which a quick answer cancels.
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
from headrace.tracing import submitted

WATCH_S = 0.05
"""How long a request waits before its client is watched: less would cost every request a task."""
SENT_S = 0.05
"""How long the next batch waits at most for the answers of the last to be sent."""
TURNS = 2
"""Turns of the event loop after an answer's own, in which it parses what its clients have asked next."""
SMOOTHING = 0.2
"""Weight of the last batch in the mean seconds of a request, and of a batch."""

WAITING = Gauge("headrace_requests_waiting", "Requests that wait for the scoring thread, or are worked on.", ["lane"])
BATCH_REQUESTS = Histogram(
    "headrace_batch_requests", "Requests of a scored batch.", ["lane"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
SHED = Counter("headrace_requests_shed_total", "Requests refused unread, or left undone.", ["reason"])

log = structlog.get_logger(__name__)

Outcome = Any
"""What answers a job: a reply of the work, or the exception that ended it."""


class ClientGoneError(Exception):
    """The client hung up: there is nobody to answer."""


class Job:
    """One request on its way: what is asked, until when, and who waits for it. Belongs to the event loop."""

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
        self.as_arrow = as_arrow  # the form of the answer
        self.ask = ask
        self.query = query
        self.deadline_s = deadline_s  # of time.monotonic
        self.receive = receive
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Outcome] = self.loop.create_future()
        self.is_over = False  # nobody waits any more; read by the scoring thread before it begins
        self.timer: asyncio.TimerHandle | None = None
        self.watcher: asyncio.Task[None] | None = None

    def end(self, outcome: Outcome) -> None:
        """Answer, unless it was answered before."""
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
    """One scoring thread and the requests that wait for it. `submit` is for the event loop, the rest for any thread.

    Args:
        name: for the thread and metrics.
        work: called in the lane's thread with jobs that are waited for; returns an outcome for each. Must not raise.
        waiting_max: requests that may wait or be worked on at once.
        rows_max: a batch takes no further request once it has so many candidates.
        on_thread: called once with the lane's thread, which runs by then.
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
        # Mean seconds of a request and of a batch lately: written by the thread, read by the event loop.
        self._request_s = self._batch_s = 0.0
        self._sent = threading.Event()  # the answers of the last batch are with their clients
        self._thread: threading.Thread | None = None
        self._waiting_gauge = WAITING.labels(lane=name)
        self._batch_sizes = BATCH_REQUESTS.labels(lane=name)

    def expected_wait_s(self) -> float:
        """Seconds until a request that came now would be begun, from what those before it cost lately.

        The lesser of two guesses: as many requests one by one, or as many batches as they fill. After lone requests,
        each of which costs as much as a batch, the first would refuse most of a burst.
        """
        batches = 1 + self._waiting_rows // self._rows_max
        return min(self._waiting * self._request_s, batches * self._batch_s)

    def require_room(self, deadline_s: float) -> None:
        """Return if a request may wait here until `deadline_s`.

        Raises:
            Refusal: 429, too many wait, or it would not be begun in time.
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
        """Wait for the outcome of `job`.

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
            outcome = _deadline_over()  # it was ready in time, and waited for this turn of the event loop
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Work on all that was submitted, then stop."""
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
            except RuntimeError:  # the loop is closed: nobody waits for its answers any more
                self._leave(len(rows), sum(rows))
                self._sent.set()
                log.warning("answers_undelivered", requests=len(pairs))

    def _deliver(self, pairs: Sequence[tuple[Job, Outcome]], count: int, rows: int) -> None:
        self._leave(count, rows)
        for job, outcome in pairs:
            job.end(outcome)
        asyncio.get_running_loop().call_soon(self._turned, TURNS)  # after the requests just ended, which send

    def _turned(self, turns_left: int) -> None:
        """Called by the event loop, a turn after another."""
        if turns_left:
            asyncio.get_running_loop().call_soon(self._turned, turns_left - 1)
        else:
            self._sent.set()

    def _leave(self, count: int, rows: int) -> None:
        """Forget `count` requests of `rows` candidates."""
        self._waiting -= count
        self._waiting_rows -= rows
        self._waiting_gauge.dec(count)


def _watch(job: Job) -> None:
    """Begin to watch a job that has waited for a while."""
    if not job.is_over:
        job.watcher = job.loop.create_task(_until_over(job))


async def until_gone(receive: Receive) -> None:
    """Return when the client of a request whose body was read hangs up."""
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
    """The counted refusal of a request whose deadline has passed."""
    SHED.labels(reason="deadline").inc()
    fix = "try again after the seconds of Retry-After, or allow more time"
    return Refusal(503, "deadline_exceeded", "the request's time is over", fix)
