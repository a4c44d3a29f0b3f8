"""Reading ahead: everything, in order, bounded; errors come where they happened."""

import threading
import time

import numpy as np
import pytest

from headrace.errors import SourceError
from headrace.streams import read_ahead
from headrace.streams.read_ahead import ReadAhead
from tests.turnstiles import Passage, as_batch, passages

LOG = passages(1_000)
STEP = 50


class Counting:
    """A source of numbered batches that fails after `fails_after` of them."""

    def __init__(self, count, fails_after=None):
        self.count, self.fails_after = count, fails_after
        self.read = 0
        self.closed_by = None

    @property
    def exhausted(self):
        return self.read == self.count

    def poll(self):
        if self.read == self.fails_after:
            raise SourceError("the disk is gone")
        self.read += 1
        first = (self.read - 1) * STEP
        return [as_batch(Passage, LOG[:STEP], first=first)]

    def close(self):
        self.closed_by = threading.current_thread()


def taken(ahead):
    """The first offset of every batch, in the order they came."""
    found = []
    while not ahead.exhausted:
        found += [int(batch.offsets[0]) for batch in ahead.poll(1.0)]
    return found


def wait_until(holds):
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def read(source, **options):
    return ReadAhead(source, lambda batch: batch, lambda _batches: None, **options)


def test_everything_comes_once_and_in_order():
    source = Counting(200)
    ahead = read(source, rows_max=3 * STEP)
    assert taken(ahead) == list(np.arange(200) * STEP)
    ahead.close()
    assert source.closed_by is threading.current_thread()


def test_no_more_waits_than_allowed():
    source = Counting(200)
    ahead = read(source, rows_max=3 * STEP)
    wait_until(lambda: source.read == 4)
    time.sleep(0.05)
    assert source.read == 4
    assert len(ahead.poll()) == 4
    wait_until(lambda: source.read == 8)
    ahead.close()


def test_a_poll_hands_out_all_that_waits_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(read_ahead, "TAKEN_ROWS", 2 * STEP)
    ahead = read(Counting(5))
    wait_until(lambda: ahead._ended)
    assert [len(ahead.poll()) for _ in range(3)] == [2, 2, 1]
    assert ahead.exhausted
    ahead.close()


def test_what_came_before_an_error_is_handed_out_before_it():
    ahead = read(Counting(200, fails_after=7))
    found = []
    while len(found) < 7:
        found += ahead.poll(10.0)
    assert len(found) == 7
    with pytest.raises(SourceError, match="the disk is gone"):
        ahead.poll(10.0)
    assert not ahead.exhausted
    ahead.close()


def test_stopped_it_hands_out_what_it_had_read_and_no_more():
    source = Counting(10_000)
    ahead = read(source, rows_max=3 * STEP)
    wait_until(lambda: source.read == 4)
    ahead.stop()
    assert taken(ahead) == [0, STEP, 2 * STEP, 3 * STEP]
    assert source.read == 4
    ahead.close()


def test_an_idle_source_costs_the_wait_and_gives_nothing():
    class Idle(Counting):
        def poll(self):
            return []

    ahead = ReadAhead(Idle(1), lambda batch: batch, lambda _batches: 0.001)
    started_s = time.monotonic()
    assert ahead.poll(0.05) == []
    assert time.monotonic() - started_s >= 0.05
    assert not ahead.exhausted
    ahead.close()


@pytest.mark.parametrize("large", [True, False])
def test_batches_are_prepared_while_the_steps_are_busy(monkeypatch, large):
    """A large batch that nobody waits for, a small one only behind others; what is awaited comes as it is."""
    monkeypatch.setattr(read_ahead, "PREPARED_ROWS", STEP if large else STEP + 1)
    prepared, gate = [], threading.Semaphore(0)

    class Gated(Counting):
        def poll(self):
            gate.acquire()
            return super().poll()

    source = Gated(4)
    ahead = read(source, prepare=[lambda batch: prepared.append(int(batch.offsets[0]))])
    gate.release()  # nobody has asked yet, which counts as waiting
    assert [int(batch.offsets[0]) for batch in ahead.poll(10.0)] == [0]
    gate.release(3)  # the steps are at the first one
    wait_until(lambda: prepared == ([STEP] if large else []) + [2 * STEP, 3 * STEP])
    assert taken(ahead) == [STEP, 2 * STEP, 3 * STEP]
    ahead.close()
