"""The plain runner: a source and an intake on one thread, the steps in a loop on another.

    positions of the steps --> seek --> poll and decode ahead --> apply --> tick --> ... --> finish

It runs the same steps as Bytewax, with equal results, and needs no extra package. At the end or after a stop, `finish`
flushes. After an error nothing is flushed, and the next start reads from the stored offsets again.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Protocol, runtime_checkable

import structlog

from headrace.streams.intake import Intake
from headrace.streams.positions import least_positions
from headrace.streams.read_ahead import ReadAhead, keep_freed_memory
from headrace.streams.source import Batch, EventBatch, Source, described
from headrace.telemetry import STAGE_SECONDS

log = structlog.get_logger(__name__)

FULL_ROWS, BUSY_ROWS = 16_384, 1_024
"""After a poll with fewer rows than FULL_ROWS the source pauses, since each poll has a fixed cost."""
LINGER_S, BUSY_LINGER_S = 0.02, 0.05
"""Length of that pause, the longer from BUSY_ROWS on; it delays events by half of it on average."""
IDLE_S = 0.003
"""Pause after an empty poll, which delays an event by at most this much."""
WAIT_S_MAX = 0.1
"""Longest wait for a batch before the loop checks its steps again."""
STATUS_S = 0.5
"""Interval of status reports of a flow."""

APPLY, TICK = map(STAGE_SECONDS.labels, ("apply", "tick"))


class Step(Protocol):
    """A consumer of batches that stores its offsets together with its results. Used by one thread."""

    def positions(self) -> dict[str, int]:
        """Next offset to read of each known partition. Called once, before the source starts."""
        ...

    def expect(self, partitions: Sequence[str]) -> None:
        """Learn the partitions of the source. Called once, before the first batch."""
        ...

    def apply(self, batch: EventBatch) -> None:
        """Process a batch, skipping rows below the offsets of the step."""
        ...

    @property
    def due_s(self) -> float | None:
        """Monotonic time at which `tick` has work even without a new batch; None if there is none."""
        ...

    def tick(self) -> Sequence[Any]:
        """Do what is due and return the results. Called after batches, when `due_s` has passed, and sometimes early."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Status of the step, in types that JSON supports."""
        ...

    def finish(self) -> Sequence[Any]:
        """Store everything applied so far. Called once, when the source has ended or the flow is asked to stop."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A step that can do part of its work in advance, on the thread of the source."""

    def prepare(self, batch: EventBatch) -> None:
        """Prepare a batch while earlier batches wait; optional, `apply` works without it."""
        ...


def prepares(steps: Iterable[Step]) -> list[Callable[[EventBatch], None]]:
    """The `prepare` methods of the steps that have one."""
    return [step.prepare for step in steps if isinstance(step, Prepares)]


class Heartbeat:
    """Reports of a running flow: `line` once it reads or waits for input, then its status twice a second.

    `say` is called with the line, each of `on_status` without arguments every `STATUS_S`.
    """

    def __init__(self, line: str, say: Callable[[str], object], on_status: Sequence[Callable[[], object]] = ()) -> None:
        self._line: str | None = line
        self._say = say
        self._on_status = on_status
        self._started_s = time.monotonic()
        self._reported_s = 0.0

    def beat(self, *, has_read: bool, waits: bool) -> None:
        """Report what is due; called after each poll.

        `has_read`: the poll returned batches. `waits`: the source has answered at least once, so a flow without batches
        is waiting for input; before that, it may still fail to open.
        """
        now_s = time.monotonic()
        if self._on_status and now_s - self._reported_s >= STATUS_S:
            self._reported_s = now_s
            for report in self._on_status:
                report()
        if self._line is not None and (has_read or (waits and now_s - self._started_s > STATUS_S)):
            self._say(self._line)
            self._line = None


def log_line(line: str) -> None:
    """Log the line that tells what a flow reads and writes."""
    log.info("flow_up", detail=line)


def up_line(source: Source, steps: Iterable[Step]) -> str:
    """Describe what a flow reads and writes."""
    return f"reads {described(source)}; writes {', '.join(map(described, steps)) or 'nothing'}"


def run(
    source: Source,
    intake: Intake,
    steps: Sequence[Step],
    *,
    out: Callable[[Any], object] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Run steps until the source ends, `stop` is set, or SIGTERM or SIGINT arrives; `out` gets the steps' results.

    Raises:
        HeadraceError: a step or the source failed. Nothing is flushed then.
    """
    with graceful_stop(stop) as stopping:
        drive(source, intake, steps, [out or discard] * len(steps), stop=stopping)


def drive(
    source: Source,
    intake: Intake,
    steps: Sequence[Step],
    outs: Sequence[Callable[[Any], object]],
    *,
    stop: threading.Event,
    heartbeat: Heartbeat | None = None,
) -> None:
    """Run steps until the source ends or `stop` is set; `outs` has a function for the results of each step.

    Raises:
        HeadraceError: as in `run`.
    """
    keep_freed_memory()
    source.seek(least_positions(step.positions() for step in steps))
    for step in steps:
        step.expect(source.partitions())
    ahead = ReadAhead(source, intake.decode, pause_after, prepare=prepares(steps))
    try:
        while not ahead.exhausted:
            if stop.is_set():
                ahead.stop()
            batches = ahead.poll(_wait_s(steps))
            for batch, step in product(batches, steps):
                with APPLY.time():
                    step.apply(batch)
            with TICK.time():
                _hand_on((step.tick() for step in steps), outs)
            if heartbeat is not None:
                heartbeat.beat(has_read=bool(batches), waits=ahead.has_polled)
        _hand_on((step.finish() for step in steps), outs)
    finally:
        ahead.close()


def discard(_result: object) -> None:
    """Drop a result of a step."""


def _hand_on(results: Iterable[Sequence[Any]], outs: Iterable[Callable[[Any], object]]) -> None:
    for of_step, out in zip(results, outs, strict=True):
        for result in of_step:
            out(result)


def _wait_s(steps: Sequence[Step]) -> float:
    """Longest wait for the next batch: until a step is due, but at most WAIT_S_MAX, to notice a stop."""
    due_s = [due_s for step in steps if (due_s := step.due_s) is not None]
    return min(max(min(due_s, default=math.inf) - time.monotonic(), 0.0), WAIT_S_MAX)


def pause_after(batches: Sequence[Batch]) -> float | None:
    """Seconds to pause before the next poll; None: poll at once, as for files, where waiting brings no more rows."""
    if not batches:
        return IDLE_S
    rows = sum(len(batch.offsets) for batch in batches)
    if rows >= FULL_ROWS or any(batch.ended or batch.appended_us is None for batch in batches):
        return None
    return LINGER_S if rows < BUSY_ROWS else BUSY_LINGER_S


@contextlib.contextmanager
def graceful_stop(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal acts as usual. Off the main thread no handler is set."""
    stopping = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: Any) -> None:
        stopping.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
