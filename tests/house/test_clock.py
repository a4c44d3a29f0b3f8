"""Clocks as several processes share them."""

import time

import pytest

from headrace.clock import AcceleratedClock, FixedClock, WallClock, parse_clock, wall_us
from headrace.errors import ConfigError


@pytest.mark.parametrize("clock", [WallClock(), FixedClock(5), AcceleratedClock(10, 20, 86_400.5)])
def test_text_round_trip(clock):
    """A clock survives an environment variable."""
    assert parse_clock(str(clock)) == clock


def test_accelerated_clock_runs_faster():
    """One second of the wall is `speed` seconds of event time, there and back."""
    clock = AcceleratedClock(event_us=1_000_000, started_wall_us=wall_us() - 2_000_000, speed=100.0)
    assert clock.now_us() == pytest.approx(201_000_000, abs=20_000_000)
    assert clock.wall_of(101_000_000) == clock.started_wall_us + 1_000_000


@pytest.mark.parametrize("text", ["", "noon", "fixed", "fixed:x", "accelerated:1:2", "wall:1"])
def test_wrong_text_is_refused(text):
    """The error names the text and the three forms."""
    with pytest.raises(ConfigError, match="clock"):
        parse_clock(text)


def test_file_clock_follows_the_file(tmp_path):
    """Processes that started before the event clock ran are told of it by the file."""
    path = tmp_path / "clock"
    path.write_text("fixed:5")
    clock = parse_clock(f"file:{path}")
    assert clock.now_us() == 5
    (tmp_path / "new").write_text("fixed:7")
    (tmp_path / "new").replace(path)
    time.sleep(0.15)
    assert clock.now_us() == 7
    assert str(clock) == f"file:{path}"


@pytest.mark.parametrize("text", ["", "file:other", "fixed:x"])
def test_file_without_a_clock_is_refused(tmp_path, text):
    """The error names the file or its text."""
    (tmp_path / "clock").write_text(text)
    with pytest.raises(ConfigError, match="clock"):
        parse_clock(f"file:{tmp_path / 'clock'}")
