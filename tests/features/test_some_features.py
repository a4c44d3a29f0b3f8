"""Reading some features of a view: as reading all, whatever is left out."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import Lists, Slab, plan_of, read_packed
from tests.features.test_every_aggregation import SPAN_US, START_US, Guest, history

PLAN = plan_of(Guest)
NAMES = [feature.name for feature in PLAN.features]
NOW_US = START_US + SPAN_US


@pytest.fixture(scope="module")
def records():
    """Ids, texts and records of forty guests; one is missing, one damaged."""
    slab = Slab(PLAN)
    slab.update(PLAN.rows(PLAN.sources[0], history().filter(pl.col("guest") < 40)))
    rows = slab.rows()
    packed = slab.pack(rows)
    packed[3] = None
    packed[7] = packed[7][:-1] + bytes([packed[7][-1] ^ 255])
    return slab.ids(rows), slab.texts(rows), packed


@settings(max_examples=25, deadline=None)
@given(names=st.sets(st.sampled_from(NAMES), max_size=6))
def test_some_features_are_those_of_a_whole_read(records, names):
    whole = read_packed(PLAN, *records, NOW_US, skips_damaged=True)
    some = read_packed(PLAN.only(names), *records, NOW_US, skips_damaged=True)
    assert names <= some.columns.keys() <= whole.columns.keys()
    assert (some.found == whole.found).all()
    assert some.found.sum() == 38
    assert (some.age_us == whole.age_us).all()
    assert (some.ahead == whole.ahead).all()
    for name in names:
        ours, theirs = some.columns[name], whole.columns[name]
        if isinstance(ours, Lists):
            assert np.array_equal(ours.lengths, theirs.lengths)
            ours, theirs = ours.values, theirs.values
        assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        assert np.array_equal(some.empty.get(name, np.zeros(0)), whole.empty.get(name, np.zeros(0)))


def test_a_plan_of_some_features_lists_these_and_what_they_are_made_of():
    some = PLAN.only({"share_1h"})
    assert [feature.name for feature in some.features] == ["visits_1h", "late_1h", "share_1h"]
    assert some.fingerprint == PLAN.fingerprint
