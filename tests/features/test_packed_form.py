"""The packed form loses nothing: floats to the bit, tiles and elements that are written once for two groups."""

import math
import struct
from datetime import datetime

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import (
    Count,
    FeatureView,
    LastN,
    Max,
    Mean,
    Sequence,
    Slab,
    Sum,
    Var,
    col,
    entity_ids,
    plan_of,
    read_packed,
)
from headrace.schemas import Event
from tests.rides import BASE_US
from tests.tiers import by_tier

SPANS = ("10m", "1h", "24h", "30d", "360d", "lifetime")


class Sale(Event, topic="sales", key="till", time="at", id="sale_id"):
    """Something was sold at a till."""

    sale_id: int
    at: datetime
    till: int
    price: float
    what: str


class Till(FeatureView, source=Sale, entity="till"):
    """Rings with all, some and none of the cells of the one before; lists with the same events and with others."""

    sales = Count(windows=SPANS)
    dear = Count(where=col("price") > 5, windows=SPANS[1:])
    taken = Sum("price", windows=SPANS)
    mean = Mean("price", windows=SPANS[:3])
    most = Max("price", windows=SPANS[3:])
    spread = Var("price", windows=SPANS[2:5])
    prices = LastN("price", n=6)
    last = Sequence("price", "what", n=4)
    things = LastN("what", n=5, distinct=True, where=col("price") > 1)
    others = LastN("what", n=3, where=col("price") <= 1)


class Note(Event, topic="notes", key="desk", time="at"):
    """Somebody noted something at a desk."""

    at: datetime
    desk: str
    number: int
    about: datetime
    words: str


class Desk(FeatureView, source=Note, entity="desk"):
    """Lists of every kind of value, some of which share events."""

    numbers = LastN("number", n=6)
    pages = Sequence("number", "about", "words", n=8)
    abouts = LastN("about", n=3)
    few = LastN("words", n=2, where=col("number") > 2)


def sales(moments_us, prices, whats, tills=None):
    count = len(moments_us)
    return pl.DataFrame(
        {
            "sale_id": np.arange(count),
            "at": pl.Series(moments_us, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "till": np.zeros(count, np.int64) if tills is None else tills,
            "price": pl.Series(prices, dtype=pl.Float64),
            "what": whats,
        }
    )


def packed(slab):
    """(ids, texts, records) of all rows."""
    rows = slab.rows()
    return slab.ids(rows), slab.texts(rows), slab.pack(rows)


def reloaded(slab):
    fresh = Slab(slab.plan, 1)
    fresh.load(*packed(slab))
    return fresh


AMOUNTS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**7), 10**7).map(lambda cents: cents / 100),
    st.integers(1, 10**5).map(lambda cents: sum([cents / 100] * 7)),
    st.integers(-(10**9), 10**9).map(lambda parts: parts / 10**4),
    st.integers(-(10**12), 10**12).map(lambda parts: sum([parts / 10**6] * 3)),
    st.integers(2**51, 2**54).map(float),
    st.sampled_from([0.0, -0.0, 5e-324, 0.005, 0.1 + 0.2, 2.0**53, -(2.0**53), 2.0**40 / 100, 1e300]),
)


@settings(max_examples=by_tier(fast=40, whole=200))
@given(amounts=st.lists(AMOUNTS, min_size=1, max_size=6))
def test_floats_come_back_to_the_bit(amounts):
    slab = Slab(plan_of(Till))
    moments = [BASE_US + i for i in range(len(amounts))]
    slab.update(slab.plan.rows(Sale, sales(moments, amounts, ["x"] * len(amounts))))
    again = reloaded(slab)
    read = again.read(again.rows(), moments[-1] + 1).columns["prices"]
    written = [amount + 0.0 for amount in amounts[::-1]]  # events have one zero
    assert read.values[0, : len(amounts)].tobytes() == struct.pack(f"<{len(amounts)}d", *written)
    assert packed(again)[2] == packed(slab)[2]


WHOLES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 300), st.sampled_from([-(2**63), 2**63 - 1, 2**56])
)
STAMPS = st.one_of(
    st.integers(BASE_US - 10**15, BASE_US + 10**15),
    st.integers(-(10**6), 10**6).map(lambda minutes: BASE_US // 60_000_000 * 60_000_000 + minutes * 60_000_000),
)


@settings(max_examples=by_tier(fast=40, whole=200))
@given(
    notes=st.lists(st.tuples(WHOLES, STAMPS, st.text(max_size=40)), min_size=1, max_size=9), step=st.integers(0, 10**8)
)
def test_whole_numbers_times_and_texts_come_back(notes, step):
    """Columns of any width, from equal numbers to those of 64 bits, in lists that share events or do not."""
    numbers, times, texts = zip(*notes, strict=True)
    stamps = pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    moments = pl.Series([BASE_US + i * step for i in range(len(notes))]).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame(
        {"desk": ["a"] * len(notes), "at": moments, "number": numbers, "about": stamps, "words": texts},
        schema_overrides={"number": pl.Int64},
    )
    slab = Slab(plan_of(Desk))
    slab.update(slab.plan.rows(Note, frame))
    ids, names, blobs = packed(slab)
    answer = read_packed(slab.plan, ids, names, blobs, BASE_US + 10**10).to_polars()
    assert answer.equals(slab.read(slab.rows(), BASE_US + 10**10).to_polars())
    if step:
        assert answer["numbers"].to_list() == [list(numbers[::-1][:6])]
        assert answer["pages_words"].to_list() == [list(texts[-8:])]
    assert packed(reloaded(slab))[2] == blobs


@settings(max_examples=by_tier(fast=15, whole=60))
@given(seed=st.integers(0, 2**32))
def test_what_two_groups_hold_reads_as_if_each_had_written_it(seed):
    """Events seconds to months apart, in any order, over several batches; packed, loaded and packed again."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 80))
    gaps = rng.choice([1, 40, 4_000, 90_000, 2_000_000], count) * rng.random(count)
    moments = rng.permutation(BASE_US + (np.cumsum(gaps) * 1e6).astype(np.int64))
    frame = sales(moments, rng.integers(1, 1_200, count) / 100, rng.choice(["a", "b", "c", "é"], count))
    frame = frame.with_columns(till=pl.Series(rng.integers(0, 3, count)))
    slab = Slab(plan_of(Till), 1)
    for batch in frame.iter_slices(int(rng.integers(1, count + 1))):
        slab.update(slab.plan.rows(Sale, batch))
        if rng.random() < 0.4:
            slab = reloaded(slab)
    ids, texts, blobs = packed(slab)
    for after_s in (0, 30, 3_000, 80_000, 3_000_000):
        now_us = int(moments.max()) + 1 + after_s * 1_000_000
        straight = read_packed(slab.plan, ids, texts, blobs, now_us).to_polars()
        assert straight.equals(slab.read(slab.rows(), now_us).to_polars())
    assert packed(reloaded(slab))[2] == blobs


def test_a_quiet_entity_writes_its_tile_once():
    """One visit: the tile of 10 min is that of all longer windows, where these keep the same."""
    plan = plan_of(Till)
    slab = Slab(plan)
    slab.update(plan.rows(Sale, sales([BASE_US], [4.95], ["tea"])))
    sizes = []
    for group, pool, base in plan.layout.with_bases(slab._state):
        ends = np.zeros(1, np.int64)
        group.pack(pool, base, slab.rows(), slab.newest_us[slab.rows()], np.empty(100, np.uint8), ends)
        sizes.append((group.base, int(ends[0])))
    rings, lists = sizes[: len(SPANS)], sizes[len(SPANS) :]
    assert [base for base, _ in rings] == [None, 0, 1, 2, 3, 4]
    assert rings[0][1] > rings[-1][1] == 1
    assert lists[0][1] > lists[1][1]
    assert math.isclose(slab.read(slab.rows(), BASE_US + 1).columns["mean_24h"][0], 4.95)


def test_null_and_missing_entities_among_packed_ones():
    """Only what has a record is decoded; the rest reads as empty."""
    plan = plan_of(Till)
    slab = Slab(plan)
    slab.update(plan.rows(Sale, sales([BASE_US], [4.95], ["tea"])))
    ids, texts = entity_ids(plan, pl.DataFrame({"till": [9, 0, None]}))
    answer = read_packed(plan, ids, texts, [None, packed(slab)[2][0], None], BASE_US + 1)
    assert answer.found.tolist() == [False, True, False]
    assert answer.columns["sales_10m"].tolist() == [0, 1, 0]
