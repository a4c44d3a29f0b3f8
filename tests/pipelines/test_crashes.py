"""Engines killed with -9 more than fifty times over millions of events, and a store that suffers: all values exact."""

import pytest

from benchmarks.crashes.run import BROKER_FAULTS, STORE_FAULTS, crash_run
from tests.tiers import by_tier

KILLS = by_tier(fast=18, whole=26)
EVENTS = by_tier(fast=1_500_000, whole=2_500_000)
SPARE = 6  # an engine may be through with the log at its moment


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engines", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_exact_values(engines, tmp_path):
    """
    engine 1 --flush--flush--x kill -9
                       engine 2 --flush--x ...          26 times in each of two layouts; the store is killed, put back
    in time, emptied, and written by a second engine meanwhile. Compared with Polars and with a replay.
    """
    found = crash_run(tmp_path, events=EVENTS, kills=KILLS + SPARE, engines=engines, seed=engines, faults=True)
    assert found.kills >= KILLS
    assert set(found.faults) == set(STORE_FAULTS)
    assert found.fenced


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broker_that_freezes_and_forgets_costs_nothing(tmp_path):
    """
    publish | engine --x kill -9 | broker killed | empty: stopped loudly | published again, same offsets: taken up |
    broker frozen: waits | ...   and the store suffers in between. Every value exact.
    """
    found = crash_run(tmp_path, events=500_000, kills=20, seed=3, faults=True, from_broker=True)
    assert found.kills == 20
    assert {*BROKER_FAULTS, "killed", "older"} == set(found.faults)
    assert any("is lost; the log ends at" in line for line in found.lost), found.lost
