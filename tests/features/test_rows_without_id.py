"""Events without an id: a row's place among rows of the same microsecond depends on what a view reads of it alone.

at     t   t   t   t          rows of one moment, told apart by the columns that the view reads:
door   1   1   1   1          not by others, by their order, by the frame's columns or by the file that they are in
code   b   a   b   c
note   x   y   z   x          read by no view
"""

import random
import uuid
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.features import Count, FeatureView, First, Last, LastN, Sequence, Slab, col, plan_of
from headrace.history.replay import replay
from headrace.schemas import Event, Field, spec_of
from tests.tiers import by_tier

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Knock(Event, topic="knocks", key="door", time="at"):
    """Somebody knocked at a door."""

    at: datetime
    door: int
    code: str | None = None
    force: float = 0.0
    tags: list[int] = Field(default_factory=list)
    note: str | None = None
    weight: int = 0


class Known(Event, topic="known", key="door", time="at", id="knock_id"):
    """Somebody knocked, and it is known which time it was."""

    knock_id: str
    at: datetime
    door: int
    code: str


class Door(FeatureView, source=Knock, entity="door"):
    """Reads code, force and tags: by value, in a filter, in an expression."""

    last = Last("code")
    first = First("force")
    recent = LastN("code", n=3, where=col("tags").list.len() > 0)
    pairs = Sequence("code", "force", n=4)
    knocks = Count(windows="lifetime")


class KnownDoor(FeatureView, source=Known, entity="door"):
    last = Last("code")


class CodeOnly(FeatureView, source=Knock, entity="door"):
    last = Last("code")


class Counted(FeatureView, source=Knock, entity="door"):
    knocks = Count(windows="lifetime")


ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(1, 2),
        st.sampled_from(["a", "b", None]),
        st.sampled_from([0.0, -0.0, 1.5]),
        st.sampled_from([[], [1], [1, 2]]),
        st.sampled_from(["x", "y", None]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=14,
)
SPINE = pl.DataFrame({"door": [1, 2], "event_time": [NOON + timedelta(days=1)] * 2})


def log_of(rows) -> pl.DataFrame:
    rows = [(NOON + timedelta(microseconds=at), *rest) for at, *rest in rows]
    return pl.DataFrame(rows, schema=spec_of(Knock).polars, orient="row")


@settings(
    max_examples=by_tier(fast=20, whole=80),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=ROWS, seed=st.integers(0, 999), cut=st.integers(0, 14), memory_rows=st.sampled_from([3, 10_000]))
def test_values_do_not_depend_on_what_the_view_does_not_read(tmp_path, rows, seed, cut, memory_rows):
    log, rng = log_of(rows), random.Random(seed)
    wanted = replay(Door, log, SPINE)
    columns = rng.sample(log.columns, len(log.columns))
    other = log.sample(fraction=1.0, shuffle=True, seed=seed).select(columns)
    assert_frame_equal(replay(Door, other, SPINE), wanted)
    assert_frame_equal(replay(Door, other.drop("note", "weight"), SPINE), wanted)
    changed = other.with_columns(note=pl.lit("other"), weight=pl.int_range(pl.len()), more=pl.lit(1))
    assert_frame_equal(replay(Door, changed, SPINE), wanted)
    narrow = other.with_columns(
        pl.col("at").dt.cast_time_unit("ms").dt.cast_time_unit("us"), pl.col("door").cast(pl.Int8)
    )
    assert_frame_equal(replay(Door, narrow, SPINE), replay(Door, narrow.select(log.columns).cast(log.schema), SPINE))
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    other[:cut].write_parquet(folder / "a.parquet")
    other[cut:].write_parquet(folder / "b.parquet")
    assert_frame_equal(replay(Door, str(folder / "*.parquet"), SPINE, memory_rows=memory_rows), wanted)


@settings(max_examples=by_tier(fast=15, whole=40))
@given(rows=ROWS, seed=st.integers(0, 999))
def test_the_live_flow_has_the_values_of_a_replay(rows, seed):
    log, plan = log_of(rows), plan_of(Door)
    slab = Slab(plan)
    for part in log.sample(fraction=1.0, shuffle=True, seed=seed).iter_slices(3):
        slab.update(plan.rows(Knock, part))
    ids = SPINE["door"].to_numpy()
    live = slab.read(slab.locate(ids), int((NOON + timedelta(days=1)).timestamp() * 1e6)).to_polars("door.")
    assert_frame_equal(live, replay(Door, log.drop("note"), SPINE).select(live.columns))


def test_rows_that_differ_in_what_is_read_alone_keep_one_order():
    """Adding a feature that reads another column is another version of the view."""
    assert plan_of(CodeOnly).fingerprint != plan_of(Door).fingerprint
    log = log_of([(0, 1, code, 0.0, [], note, 0) for code, note in (("a", "x"), ("b", "y"))])
    swapped = log.with_columns(note=pl.Series(["y", "x"]))
    assert_frame_equal(replay(CodeOnly, log, SPINE), replay(CodeOnly, swapped, SPINE))


@pytest.mark.parametrize(("view", "changes"), [(CodeOnly, True), (Door, True), (KnownDoor, False), (Counted, False)])
def test_only_views_whose_records_hold_such_keys_have_another_fingerprint(view, changes):
    assert ("events known by the columns that are read" in plan_of(view).layout.text) is changes
