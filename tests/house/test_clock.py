"""Clocks as several processes share them."""

import time

import numpy as np
import pytest

from headrace.clock import AcceleratedClock, FixedClock, WallClock, parse_clock, wall_us
from headrace.errors import ConfigError


@pytest.mark.parametrize("clock", [WallClock(), FixedClock(5), AcceleratedClock(10, 20, 86_400.5)])
def test_text_round_trip(clock):
    """A clock survives an environment variable."""
    assert parse_clock(str(clock)) == clock


def test_accelerated_clock_runs_faster():
    """One second of the wall is `speed` seconds of event time."""
    before_us = wall_us()
    clock = AcceleratedClock(event_us=1_000_000, started_wall_us=before_us - 2_000_000, speed=100.0)
    now_us = clock.now_us()
    assert 201_000_000 <= now_us <= 201_000_000 + 100 * (wall_us() - before_us)


@pytest.mark.parametrize("text", ["", "noon", "fixed", "fixed:x", "accelerated:1:2", "wall:1"])
def test_wrong_text_is_refused(text):
    """The error names the text and the three forms."""
    with pytest.raises(ConfigError, match="clock"):
        parse_clock(text)


def test_paced_clock_is_linear_between_knots(tmp_path):
    """A night of event time may pass in no time, and every process sees the same."""
    knots = np.array([[0, 10**15], [1_000_000, 10**15 + 50], [1_000_000_000_000, 10**15 + 70]])
    np.save(tmp_path / "pace.npy", knots)
    text = f"paced:{wall_us() - 500_000}:{tmp_path / 'pace.npy'}"
    clock = parse_clock(text)
    assert 10**15 + 25 <= clock.now_us() <= 10**15 + 50
    assert str(clock) == text
    assert parse_clock(f"paced:{wall_us() + 10**9}:{tmp_path / 'pace.npy'}").now_us() == 10**15
    assert parse_clock(f"paced:0:{tmp_path / 'pace.npy'}").now_us() == 10**15 + 70


def test_paced_clock_without_its_pace_is_refused(tmp_path):
    """A missing file, or one of another kind, is named."""
    with pytest.raises(ConfigError, match="pace"):
        parse_clock(f"paced:0:{tmp_path / 'nothing.npy'}")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"int64 \(n, 2\)"):
        parse_clock(f"paced:0:{tmp_path / 'flat.npy'}")


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
