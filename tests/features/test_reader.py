"""Reading a view: every form of entities, status and age, and errors that name the fix."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from headrace.errors import SpineError
from headrace.features import Count, FeatureView, plan_of
from headrace.features.store import OnlineStore
from headrace.features.store.reader import frame_of_texts, instant_us
from headrace.pipelines.shard import ShardSet
from tests.meters import START_US, MeterLoad, Reading, SiteKind, at, batches, log_frame

LOG = log_frame(3_000, meters=50)
NOW = LOG["at"].max() + timedelta(microseconds=1)


class Site(FeatureView, source=Reading, entity="site"):
    """A single text key."""

    readings = Count(windows="lifetime")


class MeterKind(FeatureView, source=Reading, entity=("meter", "kind")):
    """An integer and a text."""

    readings = Count(windows="lifetime")


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url) as opened:
        for view in (MeterLoad, SiteKind, MeterKind):
            shards = ShardSet(plan_of(view), opened, range(32))
            for batch in batches(LOG, 500):
                shards.apply(batch)
            shards.flush()
        yield opened


def test_values_come_in_the_order_asked_with_status_and_age(store):
    """Known and unknown entities mixed, one of them twice."""
    frame = store.read(MeterLoad, [3, 999, 1, 3], now=NOW)
    assert frame.columns == [
        "meter",
        *("readings_10m", "readings_1h", "readings_lifetime"),
        *("watts_1h", "watts_lifetime", "heats_1h", "recent"),
        *("_status", "_age_s"),
    ]
    assert frame["meter"].to_list() == [3, 999, 1, 3]
    assert frame["_status"].to_list() == ["fresh", "missing", "fresh", "fresh"]
    truth = LOG.filter(pl.col("meter") == 3)
    assert frame["readings_lifetime"].to_list()[0] == frame["readings_lifetime"].to_list()[3] == truth.height
    assert frame["watts_lifetime"][0] == truth["watts"].sum()
    assert frame["_age_s"].to_list()[:2] == [(NOW - truth["at"].max()).total_seconds(), None]
    assert frame["recent"].to_list()[1] == []


def test_all_forms_of_entities_give_the_same(store):
    """A list, a dict of lists, a frame with other columns too."""
    as_list = store.read(MeterLoad, [3, 1], now=NOW)
    as_dict = store.read(MeterLoad, {"meter": [3, 1]}, now=NOW)
    as_frame = store.read(MeterLoad, pl.DataFrame({"other": [0, 0], "meter": [3, 1]}), now=NOW)
    assert as_list.equals(as_dict)
    assert as_list.equals(as_frame)


def test_a_composite_key_is_given_as_tuples_or_columns(store):
    """Text keys; the answer carries both entity columns."""
    frame = store.read(SiteKind, [("3", "heat"), ("3", "none")], now=NOW)
    truth = LOG.filter(site="3", kind="heat")
    assert frame.select("site", "kind").rows() == [("3", "heat"), ("3", "none")]
    assert frame["readings_lifetime"].to_list() == [truth.height, 0]
    assert frame["_status"].to_list() == ["fresh", "missing"]
    assert frame.equals(store.read(SiteKind, {"kind": ["heat", "none"], "site": ["3", "3"]}, now=NOW))


def test_now_may_be_a_datetime_aware_or_not_microseconds_or_the_wall_clock(store):
    """A naive datetime is UTC; windows of long ago are empty by the wall clock."""
    aware = store.read(MeterLoad, [3], now=at(21_600))
    assert aware["readings_1h"][0] > 0
    assert aware.equals(store.read(MeterLoad, [3], now=at(21_600).replace(tzinfo=None)))
    assert aware.equals(store.read(MeterLoad, [3], now=START_US + 21_600_000_000))
    today = store.read(MeterLoad, [3])
    assert (today["readings_1h"][0], today["_status"][0]) == (0, "fresh")
    age_s = (datetime.now(UTC) - LOG.filter(meter=3)["at"].max()).total_seconds()
    assert today["_age_s"][0] == pytest.approx(age_s, abs=60)


def test_a_null_key_is_missing(store):
    """A guest is nobody; the other rows are read all the same."""
    assert store.read(MeterLoad, [3, None], now=NOW)["_status"].to_list() == ["fresh", "missing"]
    assert store.read(SiteKind, [("3", None), ("3", "heat")], now=NOW)["_status"].to_list() == ["missing", "fresh"]


def test_a_null_key_is_not_the_empty_text(redis_url):
    """Both have the empty text, and with one shard they would share a Redis key."""
    guests = LOG.with_columns(site=pl.lit(""))
    with OnlineStore.open(redis_url, shards=1, namespace="one") as store:
        shards = ShardSet(plan_of(Site), store, [0])
        for batch in batches(guests, 5_000):
            shards.apply(batch)
        shards.flush()
        assert store.read(Site, ["", None], now=NOW)["_status"].to_list() == ["fresh", "missing"]


def test_no_entities_give_an_empty_frame_of_the_same_columns(store):
    """The edge that a filter upstream produces."""
    empty = store.read(MeterLoad, {"meter": pl.Series([], dtype=pl.Int64)}, now=NOW)
    assert empty.schema == store.read(MeterLoad, [3], now=NOW).schema
    assert empty.height == 0


def test_keys_of_another_type_are_read_where_nothing_is_lost(store):
    """Whole floats, as a column with gaps has in pandas; small and NumPy integers; categories."""
    truth = store.read(MeterLoad, [3], now=NOW)["readings_lifetime"].to_list()
    asked = [[3.0], [np.int64(3)], np.array([3], np.int32), {"meter": pl.Series([3.0])}, pl.Series([3], dtype=pl.UInt8)]
    for keys in asked:
        assert store.read(MeterLoad, keys, now=NOW)["readings_lifetime"].to_list() == truth
    both = store.read(MeterKind, [(3, "heat")], now=NOW)["readings_lifetime"].to_list()
    assert both == [LOG.filter(meter=3, kind="heat").height]
    frame = pl.DataFrame({"meter": [3.0], "kind": pl.Series(["heat"], dtype=pl.Categorical)})
    for keys in ([(3.0, "heat")], frame, {"meter": [3.0], "kind": ["heat"]}):
        assert store.read(MeterKind, keys, now=NOW)["readings_lifetime"].to_list() == both


def test_the_id_of_a_null_key_belongs_to_no_entity(redis_url):
    """What NaN becomes as int64 is a guest like null: left out of events, never found."""
    strange = LOG.with_columns(meter=pl.lit(-(2**63)))
    with OnlineStore.open(redis_url, namespace="strange") as store:
        shards = ShardSet(plan_of(MeterLoad), store, range(32))
        for batch in batches(
            strange.with_columns(meter=pl.when(pl.int_range(pl.len()) > 0).then("meter").otherwise(3)), 500
        ):
            shards.apply(batch)
        shards.flush()
        asked = store.read(MeterLoad, [None, -(2**63), 3], now=NOW)
        assert asked["_status"].to_list() == ["missing", "missing", "fresh"]
        assert len(list(store.scan(plan_of(MeterLoad)))) == 1


@pytest.mark.parametrize("now", [1.5, date(2024, 1, 1), True, "noon", 2**80, np.datetime64("2024-01-01")])
def test_a_now_that_is_no_time_is_told(store, now):
    with pytest.raises(SpineError, match="now=.* is no time; "):
        store.read(MeterLoad, [3], now=now)


def test_now_may_be_text(store):
    """ISO 8601, as on the command line, to the microsecond."""
    assert store.read(MeterLoad, [3], now=NOW.isoformat()).equals(store.read(MeterLoad, [3], now=NOW))
    assert instant_us("2011-10-01T12:00:00.000001+02:00") == 1_317_463_200_000_001
    assert instant_us("2011-10-01") == instant_us("2011-10-01T00:00:00Z") == 1_317_427_200_000_000


@pytest.mark.parametrize(
    ("view", "entities", "message"),
    [
        (MeterLoad, {"id": [1]}, r"entities lack meter; there are id\. Rename .*rename\(\{'\.\.\.': 'meter'\}\)"),
        (MeterLoad, pl.DataFrame(), "entities lack meter; there are no columns"),
        (MeterLoad, 5, "entities 5: give a list of keys, a dict of lists, or a Polars frame with meter"),
        (MeterLoad, "3", "entities '3': give a list of keys"),
        *[
            (
                MeterLoad,
                given,
                f"view meter_load: entity column meter: {words}.*, and the events have an int; ",
            )
            for given, words in [
                (["one"], "'one' is str"),
                (["3"], "'3' is str"),
                ([3, 3.7], "3.7 is float"),
                ([3.0, float("nan")], "nan is float"),
                ([3, True], "True is bool"),
                ([2**63], "9223372036854775808 is beyond 64 bits"),
                ({"meter": [1, 3.7]}, "3.7 is float"),
                ({"meter": pl.Series([3.0, 3.7])}, "3.7 is no whole number"),
                (pl.DataFrame({"meter": [3.0, None, 3.7]}), "3.7 is no whole number"),
                (pl.DataFrame({"meter": [3.0, float("nan")]}), "nan is no whole number"),
                (
                    pl.DataFrame({"meter": pl.Series([2**63], dtype=pl.UInt64)}),
                    "9223372036854775808 is no whole number",
                ),
                (pl.DataFrame({"meter": [True]}), "the column is Boolean, such as True"),
                (pl.DataFrame({"meter": [None, "3"]}), "the column is String, such as '3'"),
                (np.array([3.7]), "3.7 is no whole number"),
            ]
        ],
        (MeterKind, [("heat", 3)], "entity column meter: 'heat' is str, and the events have an int"),
        (MeterKind, [(3, 3)], "entity column kind: 3 is int, and the events have a str; give a str.*pl.String"),
        (MeterKind, [(3.5, "heat")], "entity column meter: 3.5 is float"),
        (MeterKind, {"meter": ["3"], "kind": ["heat"]}, "entity column meter: '3' is str"),
        (MeterKind, pl.DataFrame({"meter": [3], "kind": [1]}), "entity column kind: the column is Int64, such as 1"),
        (MeterKind, {"meter": [3, 4], "kind": ["heat"]}, "the entities' lists make no frame"),
        (MeterKind, [(3, "\ud800")], r"entity column kind: '\\ud800' is no text of Unicode characters"),
        (SiteKind, ["3"], r"each key needs 2 value\(s\), for site, kind; give a composite key as a tuple"),
        (SiteKind, {"site": ["3"]}, "entities lack kind; there are site"),
    ],
)
def test_entities_that_cannot_be_read_are_refused_with_the_fix(store, view, entities, message):
    """The message names the view, the column, what is there and what to do."""
    with pytest.raises(SpineError, match=message):
        store.read(view, entities)


@pytest.mark.parametrize(("now", "unit"), [(1_767_312_000, "seconds"), (1_767_312_000_000, "milliseconds")])
def test_a_moment_in_another_unit_is_refused(store, now, unit):
    """Read as microseconds it is January 1970, and every window empty."""
    with pytest.raises(SpineError, match=f"now={now} looks like {unit}"):
        store.read(MeterLoad, [1], now)


def test_a_key_on_the_command_line_that_is_no_utf_8_is_refused():
    """Python hands such bytes on as lone surrogates."""
    with pytest.raises(SpineError, match=r"entity column kind: '\\udcff' is no text of Unicode characters"):
        frame_of_texts(plan_of(MeterKind), ["3,\udcff"], ())
