"""Features made of features and of the request: worked out when read, the same from a slab, a record and on replay."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from prometheus_client import REGISTRY

from headrace import Count, Event, FeatureView, Last, LastN, OnlineStore, Sum, col, replay
from headrace.errors import DeclarationError, SpineError
from headrace.features import plan_of
from headrace.pipelines.shard import ShardSet
from headrace.streams.source import EventBatch
from tests.logs import capture_logs

START = datetime(2026, 1, 1, tzinfo=UTC)


class Sale(Event, topic="sales", key="shop", time="at", id="sale_id"):
    """Something was sold."""

    sale_id: int
    at: datetime
    shop: int
    amount: float
    currency: str


class ShopPlain(FeatureView, source=Sale, entity="shop", name="shop"):
    """Without expressions."""

    sales = Count(windows=("1h", "24h"))
    amount = Sum("amount", windows=("1h", "24h"))
    currency = Last("currency")
    recent = LastN("amount", n=3)


class Shop(ShopPlain, source=Sale, entity="shop", name="shop", request={"price": float, "code": str}):
    """With some, one made of another, in any order."""

    is_dear = col("price") > 2 * col("mean_24h")
    mean_24h = col("amount_24h") / col("sales_24h")
    share = pl.when(col("sales_24h") > 0).then(col("sales_1h") / col("sales_24h")).otherwise(0.0)
    is_home = col("currency") == col("code")
    best = col("recent").list.max()


def sales():
    return pl.DataFrame(
        {
            "sale_id": range(6),
            "at": [START + timedelta(minutes=20 * i) for i in range(6)],
            "shop": [1, 1, 1, 1, 2, 2],
            "amount": [1.0, 2.0, 3.0, 6.0, 8.0, 0.0],
            "currency": ["EUR", "EUR", "SEK", "SEK", "EUR", "CZK"],
        }
    ).with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")))


NOW = START + timedelta(hours=2)
ASKED = pl.DataFrame({"shop": [1, 2, 3], "price": [7.0, 8.0, 1.0], "code": ["SEK", "EUR", "SEK"]})
EXPECTED = {
    "share": [0.25, 1.0, 0.0],
    "mean_24h": [3.0, 4.0, None],
    "is_dear": [1, 0, None],
    "is_home": [1, 0, None],
    "best": [6.0, 8.0, None],
}


@pytest.fixture
def store(redis_url):
    """The sales, materialised."""
    with OnlineStore.open(redis_url) as opened:
        shards = ShardSet(plan_of(Shop), opened, range(opened.shards))
        frame = sales()
        shards.apply(EventBatch(Sale, "sales/0", frame["sale_id"].to_numpy(), 6, frame, None, 0))
        shards.flush()
        yield opened


def test_a_read_works_them_out_from_features_and_the_request(store):
    found = store.read(Shop, ASKED, NOW)
    for name, expected in EXPECTED.items():
        assert found[name].to_list() == expected, name


def test_replay_gives_the_same(store):
    spine = ASKED.with_columns(event_time=pl.lit(NOW))
    found = replay(Shop, sales(), spine)
    live = store.read(Shop, ASKED, NOW)
    for name in live.columns:
        if not name.startswith("_") and name != "shop":
            assert found[f"shop.{name}"].to_list() == live[name].to_list(), name


def test_keys_alone_leave_features_of_the_request_without_a_value(store):
    found = store.read(Shop, [1, 2], NOW)
    assert found["mean_24h"].to_list() == [3.0, 4.0]
    assert found["is_dear"].to_list() == found["is_home"].to_list() == [None, None]


def test_a_request_field_that_is_missing_or_wrong_is_told(store):
    with pytest.raises(SpineError, match=r"view shop: .*request's field 'code' \(String\)"):
        store.read(Shop, ASKED.drop("code"), NOW)
    with pytest.raises(SpineError, match="request field 'price' is String, not Float64"):
        store.read(Shop, ASKED.with_columns(price=pl.lit("much")), NOW)
    with pytest.raises(SpineError, match="request's field 'price'"):
        replay(Shop, sales(), ASKED.drop("price").with_columns(event_time=pl.lit(NOW)))


def test_they_are_not_part_of_what_is_stored():
    assert plan_of(Shop).fingerprint == plan_of(ShopPlain).fingerprint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: col("sales_1d") / 2, "no feature or request field 'sales_1d'; did you mean 'sales_"),
        (lambda: col("currency"), "is String; make it a number"),
        (lambda: col("sales_1h") + col("currency"), "does not fit|is String"),
        (lambda: col("sales_1h").sum(), "looks at other rows"),
        (lambda: col("sales_1h").shuffle(), "is random, so a replay would not reproduce it"),
        (lambda: col("recent").explode(), "gives another number of rows than it gets"),
        (lambda: col("other") + 1, "depend on each other|no feature"),
    ],
)
def test_wrong_expressions_are_told(make, words):
    with pytest.raises(DeclarationError, match=words) as caught:
        type("Wrong", (ShopPlain,), {"wrong": make()}, source=Sale, entity="shop")
    assert "view wrong" in str(caught.value)


def test_a_circle_a_taken_name_and_an_unknown_type_are_told():
    with pytest.raises(DeclarationError, match="a, b depend on each other"):
        type("Circle", (ShopPlain,), {"a": col("b") + 1, "b": col("a") + 1}, source=Sale, entity="shop")
    with pytest.raises(DeclarationError, match="is already a feature"):
        type("Taken", (ShopPlain,), {"sales_1h": col("sales_24h") + 1}, source=Sale, entity="shop")
    with pytest.raises(DeclarationError, match="request field price: type"):
        type("Typed", (ShopPlain,), {}, source=Sale, entity="shop", request={"price": list})
    made = {"x": col("sales_1h") + 1}
    with pytest.raises(DeclarationError, match="'sales_1h' is a feature and a request field"):
        type("Both", (ShopPlain,), made, source=Sale, entity="shop", request={"sales_1h": float})


class Odd(ShopPlain, source=Sale, entity="shop", name="odd", request={"code": str}):
    """Expressions that have no value for some entities."""

    third = col("recent").list.get(2) > 1
    small = col("sales_24h").cast(pl.UInt8) * 100
    known = col("currency").replace_strict({"SEK": 1})
    asked = col("code").cast(pl.Int64)
    huge = col("sales_24h").cast(pl.UInt64) * 2**62
    ratio = col("small") / col("known")


def test_an_entity_that_an_expression_fails_for_has_no_value_and_the_others_have(store):
    """Live and on replay, each counted."""
    frame = pl.concat([sales(), sales()[-1:].with_columns(shop=pl.lit(3, pl.Int64))])
    asked = pl.DataFrame({"shop": [1, 2, 3, 4], "code": ["5", "x", "7", "8"]})
    expected = {
        "third": [1, None, None, None],
        "small": [144, 200, 100, 0],  # of eight bits
        "known": [1, None, None, None],
        "asked": [5, None, 7, 8],
        "huge": [0, None, 2**62, 0],  # of 64 bits, without a sign
    }
    names = [*expected, "ratio"]
    before = {name: failed(name) for name in names}
    shards = ShardSet(plan_of(Odd), store, range(store.shards))
    shards.apply(EventBatch(Sale, "sales/0", np.arange(7), 7, frame, None, 0))
    shards.flush()
    live = store.read(Odd, asked, NOW)
    found = replay(Odd, frame, asked.with_columns(event_time=pl.lit(NOW)))
    for name, values in expected.items():
        assert live[name].to_list() == found[f"odd.{name}"].to_list() == values, name
    assert live["ratio"].to_list() == [144.0, None, None, None]
    counts = {name: failed(name) - before[name] for name in names}
    assert counts == {"third": 6, "small": 0, "known": 4, "asked": 2, "huge": 2, "ratio": 0}


def failed(feature):
    return REGISTRY.get_sample_value("headrace_features_failed_total", {"view": "odd", "feature": feature}) or 0


def test_failing_features_are_logged_a_line_a_second_at_most(store):
    noisy = type("Noisy", (ShopPlain,), {"asked": Odd.asked}, source=Sale, entity="shop", request={"code": str})
    began_s = time.monotonic()
    with capture_logs() as logs:
        for _ in range(50):
            store.read(noisy, pl.DataFrame({"shop": [2] * 10, "code": ["x"] * 10}), NOW)
    lines = [line for line in logs if line["event"] == "feature_expression_failed" and line["feature"] == "asked"]
    assert 1 <= len(lines) <= 2 + (time.monotonic() - began_s)
    assert (lines[0]["view"], lines[0]["count"]) == ("noisy", 10)
    assert "conversion from `str` to `i64` failed" in lines[0]["detail"]
