"""Samples of freshness weigh every event alike, however many flushes they came in."""

import numpy as np

from headrace.pipelines.materializer import Freshness
from tests.turnstiles import START_US, Passage, as_batch, passages


def test_all_events_are_kept_until_the_reservoir_is_full():
    freshness = Freshness("test", samples_max=100)
    freshness.add(as_batch(Passage, passages(3), appended_us=np.array([0, 1_000, 5_000])))
    assert freshness.visible(10_000) == 0.01
    freshness.add(as_batch(Passage, passages(1)))
    assert freshness.visible(START_US + 2_000) == 0.002
    assert sorted(freshness.samples_ms()) == [2, 5, 9, 10]
    assert freshness.visible(99) is None


def test_a_full_reservoir_is_a_fair_sample():
    """30,000 fast events in one flush, 10,000 slow ones in fifty: a quarter of the samples is slow."""
    freshness = Freshness("test", samples_max=2_000, seed=1)
    freshness.add(as_batch(Passage, passages(0), appended_us=np.zeros(30_000, np.int64)))
    freshness.visible(1_000)
    for _ in range(50):
        freshness.add(as_batch(Passage, passages(0), appended_us=np.zeros(200, np.int64)))
        freshness.visible(9_000)
    samples = freshness.samples_ms()
    assert len(samples) == 2_000
    assert abs((samples == 9).mean() - 0.25) < 0.05
