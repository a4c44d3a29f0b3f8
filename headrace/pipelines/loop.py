"""The plain runner: a source and an intake on one thread, some steps in one loop on another.

It runs the same objects with the same semantics as the Bytewax adapter, which shows where the seam is: positions
first, then poll and decode ahead, apply, tick; at the end or when stopped, finish. What the offsets do not cover is
read again at the next start.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, runtime_checkable

from headrace.streams.intake import Intake
from headrace.streams.memory import keep_freed_memory
from headrace.streams.positions import least_positions
from headrace.streams.read_ahead import ReadAhead
from headrace.streams.source import Batch, EventBatch, Source

FULL_ROWS, BUSY_ROWS = 16_384, 1_024
"""A poll with fewer rows is followed by a pause: each poll has a cost of its own, whatever it brings."""
LINGER_S, BUSY_LINGER_S = 0.02, 0.05
"""That pause, the longer one from BUSY_ROWS on; half of it is what it adds to freshness on average."""
IDLE_S = 0.003
"""Pause after a poll that brought nothing; what it adds to freshness at most."""
WAIT_S_MAX = 0.1
"""How long a batch is waited for at a time."""


class Step(Protocol):
    """Something that takes batches in and keeps its offsets with what it makes of them. Used by one thread."""

    def positions(self) -> dict[str, int]:
        """Next offset wanted, of each partition known. Asked once, before the source starts."""
        ...

    def expect(self, partitions: Sequence[str]) -> None:
        """The partitions of the source; told once, before the first batch."""
        ...

    def apply(self, batch: EventBatch) -> None:
        """Take in a batch. Rows below the step's own offsets must be left out."""
        ...

    @property
    def due_s(self) -> float | None:
        """Monotonic time at which `tick` has something to do even if no batch comes; None: nothing waits."""
        ...

    def tick(self) -> Sequence[Any]:
        """Called after batches and when `due_s` has passed, also without need: do what is due, hand on the results."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Figures to show, plain enough for JSON."""
        ...

    def finish(self) -> Sequence[Any]:
        """Called once, when the source ended or the flow is asked to stop: keep everything that was applied."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A step of whose work some can be done ahead, on the source's thread."""

    def prepare(self, batch: EventBatch) -> None:
        """Called for a batch while batches before it wait; `apply` works without it."""
        ...


def prepares(steps: Iterable[Step]) -> list[Callable[[EventBatch], None]]:
    """What can be done ahead for `steps`."""
    return [step.prepare for step in steps if isinstance(step, Prepares)]


def run(
    source: Source,
    intake: Intake,
    steps: Sequence[Step],
    *,
    out: Callable[[Any], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Run until the source is exhausted, `stop` is set, or SIGTERM or SIGINT arrives; `out` gets the steps' results.

    Raises:
        HeadraceError: a step or the source failed. Nothing is flushed then.
    """
    hand_on = out or (lambda _result: None)
    keep_freed_memory()
    with graceful_stop(stop) as stopping:
        source.seek(least_positions(step.positions() for step in steps))
        for step in steps:
            step.expect(source.partitions())
        ahead = ReadAhead(source, intake.decode, pause_after, prepare=prepares(steps))
        try:
            while not ahead.exhausted:
                if stopping.is_set():
                    ahead.stop()
                for events in ahead.poll(_wait_s(steps)):
                    for step in steps:
                        step.apply(events)
                for result in chain.from_iterable(step.tick() for step in steps):
                    hand_on(result)
            for result in chain.from_iterable(step.finish() for step in steps):
                hand_on(result)
        finally:
            ahead.close()


def _wait_s(steps: Sequence[Step]) -> float:
    """How long the next batch may be waited for: until some step is due, and not long, for a stop may be asked."""
    due_s = [due_s for step in steps if (due_s := step.due_s) is not None]
    return min(max(min(due_s, default=math.inf) - time.monotonic(), 0.0), WAIT_S_MAX)


def pause_after(batches: Sequence[Batch]) -> float | None:
    """Seconds until the next poll is worth its cost; None: at once, as for files, where no more comes by waiting."""
    if not batches:
        return IDLE_S
    rows = sum(len(batch.offsets) for batch in batches)
    if rows >= FULL_ROWS or any(batch.ended or batch.appended_us is None for batch in batches):
        return None
    return LINGER_S if rows < BUSY_ROWS else BUSY_LINGER_S


@contextlib.contextmanager
def graceful_stop(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second signal acts as usual. Off the main thread it is just an event."""
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
