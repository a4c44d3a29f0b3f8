"""The watermark never moves back, and the slowest partition that is awake decides."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.streams.watermark import END_OF_TIME_US, Watermark
from tests.tiers import by_tier
from tests.turnstiles import START_US, Passage, as_batch, passages


def note(watermark: Watermark, partition: str, second: float, *, wall_s: float = 0, ended: bool = False) -> None:
    """One event of `partition`, `second` after the start, heard of at wall time `wall_s`."""
    frame = passages(1).with_columns(at=passages(1)["at"].dt.cast_time_unit("us").to_physical() * 0 + START_US)
    frame = frame.with_columns(frame["at"] + int(second * 1e6)).cast(passages(1).schema)
    watermark.observe(as_batch(Passage, frame, partition=partition, ended=ended), int(wall_s * 1e6))


def seconds(watermark: Watermark, wall_s: float = 0) -> float | None:
    value = watermark.value_us(int(wall_s * 1e6))
    return None if value is None else (value - START_US) / 1e6


def test_it_is_the_slowest_partition_minus_the_lateness():
    watermark = Watermark(lateness_us=2_000_000)
    assert seconds(watermark) is None
    note(watermark, "a/0", 10)
    assert seconds(watermark) == 8
    note(watermark, "a/1", 30)
    note(watermark, "a/0", 20)
    assert seconds(watermark) == 18


def test_an_expected_partition_holds_it_back_until_it_speaks():
    watermark = Watermark(["a/0", "a/1"], idle_s=None)
    note(watermark, "a/0", 10)
    assert seconds(watermark) is None
    note(watermark, "a/1", 4)
    assert seconds(watermark) == 4


def test_a_silent_partition_lets_go_after_a_while_and_never_pulls_back():
    """
    wall   0         5        31              32
    a/0    10s                      40s
    a/1    4s                                 5s (late)
    value  4s        4s       40s             40s
    """
    watermark = Watermark(idle_s=30)
    note(watermark, "a/0", 10)
    note(watermark, "a/1", 4)
    assert seconds(watermark, 5) == 4
    note(watermark, "a/0", 40, wall_s=31)
    assert seconds(watermark, 31) == 40
    note(watermark, "a/1", 5, wall_s=32)
    assert seconds(watermark, 32) == 40


def test_when_all_are_silent_those_that_never_spoke_let_go():
    """
    wall   0         5        31              32
    a/0    10s
    a/1    4s                                 20s
    b/0    -         -        -               -        a topic without events, such as rankings of a new service
    value  None      None     4s              20s      the others still decide: their reader may have been busy
    """
    watermark = Watermark(idle_s=30)
    watermark.expect(["a/0", "a/1", "b/0"], 0)
    note(watermark, "a/0", 10)
    note(watermark, "a/1", 4)
    assert seconds(watermark, 5) is None
    assert seconds(watermark, 31) == 4
    note(watermark, "a/1", 20, wall_s=32)
    assert seconds(watermark, 32) == 20


def test_an_ended_partition_lets_go_and_when_all_ended_time_is_over():
    watermark = Watermark(["a/0", "a/1"], idle_s=None)
    note(watermark, "a/0", 10, ended=True)
    note(watermark, "a/1", 4)
    assert seconds(watermark) == 4
    note(watermark, "a/1", 6)
    assert seconds(watermark) == 6
    note(watermark, "a/1", 7, ended=True)
    assert watermark.value_us(0) == END_OF_TIME_US


def test_a_batch_without_rows_only_tells_that_the_partition_lives():
    watermark = Watermark(idle_s=30)
    note(watermark, "a/0", 10)
    watermark.observe(as_batch(Passage, passages(0), partition="a/0"), 29_000_000)
    assert seconds(watermark, 40) == 10


@settings(max_examples=by_tier(fast=25, whole=100))
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=40), st.randoms())
def test_it_never_moves_back(events: list[tuple[str, int]], rng: random.Random):
    """Whatever comes in whatever order, with partitions falling silent in between."""
    watermark = Watermark(idle_s=5)
    last, wall_s = -1e9, 0.0
    for partition, second in events:
        wall_s += rng.random() * 4
        note(watermark, partition, second, wall_s=wall_s)
        value = seconds(watermark, wall_s)
        assert value is None or value >= last
        last = last if value is None else value
