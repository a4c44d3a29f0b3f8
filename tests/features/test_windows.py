"""Hops and rings."""

import pytest

from headrace.features.windows import HOPS_S, SECOND_US, window_of
from tests import oracle


@pytest.mark.parametrize(
    ("label", "hop_s", "tiles"),
    [
        ("10s", 1, 11),
        ("100s", 1, 101),
        ("10m", 15, 41),
        ("1h", 120, 31),
        ("24h", 3_600, 25),
        ("7d", 21_600, 29),
        ("30d", 86_400, 31),
        ("400d", 86_400, 401),
        ("61m", 60, 62),
        ("3601s", 1, 3_602),
        ("lifetime", 0, 1),
    ],
)
def test_hop_is_the_largest_step_that_fits(label, hop_s, tiles):
    """At least 24 hops a window, a whole number of them."""
    window = window_of(label)
    assert (window.hop_us // SECOND_US, window.tiles) == (hop_s, tiles)


def test_every_hop_of_whole_minutes_agrees_with_the_oracle():
    """And keeps the tail under 4.2 %."""
    for minutes in range(1, 1_500):
        window = window_of(f"{minutes}m")
        assert window.hop_us == oracle.hop_us(f"{minutes}m")
        assert window.hop_us // SECOND_US in HOPS_S
        assert window.hop_us / window.window_us < 0.042


def test_start_is_a_whole_hop_also_before_1970():
    """floor(t, h) - W."""
    window = window_of("10m")
    assert window.start_us(-1) == -615 * SECOND_US
    assert window_of("1h", "30m").start_us(3_599 * SECOND_US) == (1_800 - 3_600) * SECOND_US
