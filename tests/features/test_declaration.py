"""Declarations: names, sharing, fingerprints, and errors that say what to write."""

import pickle
from datetime import datetime

import polars as pl
import pytest

from headrace.errors import DeclarationError
from headrace.features import (
    Count,
    DecayedCount,
    DecayedSum,
    FeatureView,
    Last,
    LastN,
    Mean,
    Min,
    Quantile,
    Ratio,
    Sequence,
    Std,
    Sum,
    TopK,
    Var,
    VectorMean,
    aggregations,
    col,
    plan_of,
)
from headrace.schemas import Event
from tests.rides import Check, Ride, RiderTrips


class Parcel(Event, topic="parcels", key="code", time="seen_at", id="scan"):
    """A parcel's scan; the key is a text."""

    scan: int
    seen_at: datetime
    code: str
    rider: str
    weight: float
    tags: list[str]


class Note(Event, topic="notes", key="rider", time="at"):
    """An event without an id."""

    at: datetime
    rider: int


def declare(*, source=Ride, entity="rider", dedupe=None, ttl=None, name=None, **features):
    """A view made from its attributes. `type` reads no class body, so a name written twice needs `class`."""
    return type("Some", (FeatureView,), features, source=source, entity=entity, dedupe=dedupe, ttl=ttl, name=name)


def test_names_of_features_and_views():
    """<attribute>_<window>, <attribute>, <attribute>_<value>; the view in snake case."""
    names = [feature.name for feature in plan_of(RiderTrips).features]
    assert names[:4] == ["all_10s", "all_10m", "all_24h", "all_lifetime"]
    assert {"first", "line", "lines", "trips_line", "trips_fare", "trips_at", "idle_10m"} <= set(names)
    assert names[-3:] == ["share_10m", "plain_10m", "plain_lifetime"]
    assert plan_of(RiderTrips).features[0].full_name == "rider_trips.all_10s"
    dtypes = {feature.name: feature.dtype for feature in plan_of(RiderTrips).features}
    assert dtypes["trips_at"] == "list[time]"
    assert (dtypes["zone_10m"], dtypes["entry_10m"], dtypes["mean_10m"]) == ("text", "int", "float")


def test_equal_state_is_kept_once():
    """Four features of one sum and one count in one ring; two features of one list."""
    view = declare(
        n=Count(windows=("10m", "1h")),
        mean=Mean("stops", windows="10m"),
        total=Sum("stops", windows=("10m",)),
        hour=Count(windows="60m"),
        last=Last("line"),
        seen=Last("line", windows=("10m", "1h")),
    )
    groups = plan_of(view).layout.groups
    assert len(groups) == 3
    assert [group.width for group in groups[:2]] == [3, 1]


def test_fingerprint_follows_the_meaning_not_the_names():
    """Renaming keeps it; another filter, window, list length or entity changes it."""
    plain = plan_of(declare(n=Count(where=col("stops") > 1, windows="1h"), last=LastN("line", n=5))).fingerprint
    assert plain == plan_of(declare(m=Count(where=col("stops") > 1, windows="60m"), k=LastN("line", n=5))).fingerprint
    others = [
        declare(n=Count(where=col("stops") > 2, windows="1h"), last=LastN("line", n=5)),
        declare(n=Count(where=col("stops") > 1, windows="2h"), last=LastN("line", n=5)),
        declare(n=Count(where=col("stops") > 1, windows="1h"), last=LastN("line", n=6)),
        declare(n=Count(where=col("stops") > 1, windows="1h"), last=LastN("line", n=5, distinct=True)),
        declare(n=Count(where=col("stops") > 1, windows="1h"), last=LastN("line", n=5), entity="line"),
        declare(n=Count(where=col("line").is_in(["a"] * 30 + ["b"] * 30), windows="1h")),
        declare(n=Count(where=col("line").is_in(["a"] * 31 + ["b"] * 29), windows="1h")),
    ]
    found = {plan_of(view).fingerprint for view in others} | {plain}
    assert len(found) == len(others) + 1


def test_a_base_view_passes_its_features_on():
    """A base without a source is no view, its attributes are those of its children."""

    class Base(FeatureView):
        rides = Count(windows="1h")

    class Child(Base, source=Ride, entity="rider", ttl="30d"):
        stops = Sum("stops", windows="1h")

    assert [feature.name for feature in plan_of(Child).features] == ["rides_1h", "stops_1h"]
    assert plan_of(Child).ttl_us == 30 * 86_400_000_000
    with pytest.raises(DeclarationError, match="view Base: no source"):
        plan_of(Base)


def namesake(topic):
    """Another event class of the name Ride."""

    class Ride(Event, topic=topic, key="rider", time="at"):
        at: datetime
        rider: int

    return Ride


def test_two_event_classes_of_one_name_are_refused():
    """Columns and ids of events are told apart by the class's name: the two would be counted as one."""
    with pytest.raises(
        DeclarationError, match=r"view some: sources tests\.rides:Ride and .*namesake.*Ride have one name"
    ):
        declare(source=(Ride, namesake("a")), n=Count(windows="1h"), own=Count(windows="1h", source=Ride))


def test_a_name_written_twice_in_a_class_is_refused():
    """Python would keep the last and say nothing."""
    with pytest.raises(DeclarationError, match="view twice · feature n: written twice in one class; rename one"):

        class Twice(FeatureView, source=Ride, entity="rider"):
            n = Count(windows="1h")
            n = Sum("stops", windows="1h")  # noqa: PIE794

    with pytest.raises(DeclarationError, match="view other · feature n: written twice"):

        class Method(FeatureView, source=Ride, entity="rider", name="other"):
            n = Count(windows="1h")

            def n(self):  # noqa: F811
                """Hides the count."""


def test_a_subclass_replaces_or_removes_what_a_base_has():
    """Wholly: an expression takes the place of windows, an aggregation that of an expression, None leaves nothing."""

    class Base(FeatureView):
        a = Count(windows=("1h", "2h"))
        b = Sum("stops", windows="1h")
        c = col("b_1h") + 1
        d = Last("line")

    class Child(Base, source=Ride, entity="rider"):
        a = col("b_1h") * 2
        c = Count(windows="1h")
        d = None

    assert [feature.name for feature in plan_of(Child).features] == ["b_1h", "c_1h", "a"]
    with pytest.raises(DeclarationError, match="feature a: 5 hides a feature of a base; write None to remove it"):
        type("Hides", (Base,), {"a": 5}, source=Ride, entity="rider")


def test_a_view_can_be_pickled():
    """By name, as workers of a replay get it."""
    assert pickle.loads(pickle.dumps(RiderTrips)) is RiderTrips


def test_a_ttl_is_no_shorter_than_what_looks_back():
    """Else the store would forget what a window still holds, and a replay would not; what looks back for ever may."""
    assert plan_of(declare(n=Count(windows="1h"), ttl="62m")).ttl_us == 62 * 60_000_000
    assert plan_of(declare(n=Count(windows="lifetime"), last=LastN("line", n=3), ttl="1m")).ttl_us == 60_000_000
    wrong = {
        "ttl='1h' is shorter than window '1h' of feature n with its hop of 2m looks back.*write ttl='62m' or more": {
            "n": Count(windows=("10m", "1h"))
        },
        "window '2h' of feature last with its hop of 5m": {"last": Last("line", windows="2h")},
        "within='2h' of feature lines": {"lines": LastN("line", n=2, within="2h")},
        "than its dedupe= looks back": {"n": Count(windows="lifetime"), "dedupe": "2h"},
    }
    for words, features in wrong.items():
        with pytest.raises(DeclarationError, match=words):
            declare(ttl="1h", **features)


def test_class_arguments_of_the_wrong_kind_are_told():
    """One message each, that says what to write."""
    wrong = {
        "no class argument dedup=; did you mean dedupe=": {"dedup": "10m"},
        "source='Ride'; write SomeEvent or a tuple": {"source": "Ride"},
        "source int is no event": {"source": int},
        r"entity=<Expr .*; write \"some_column\"": {"entity": col("rider")},
        "names one column twice": {"entity": ("rider", "rider")},
        r"request=\['x'\]; write a dict": {"request": ["x"]},
        "request field x: type": {"request": {"x": [int]}},
        "view some.thing: a view's name is part": {"name": "some.thing"},
        "view Some: a view's name": {"name": "Some"},
        "view : a view's name": {"name": ""},
        "view 5: a view's name": {"name": 5},
    }
    for words, arguments in wrong.items():
        with pytest.raises(DeclarationError, match=words):
            type("Some", (FeatureView,), {"n": Count(windows="1h")}, **{"source": Ride, "entity": "rider", **arguments})
    with pytest.raises(DeclarationError, match="view some: no source"):
        type("Some", (FeatureView,), {"n": Count(windows="1h")}, ttl="30d")
    with pytest.raises(DeclarationError, match="view größe: a view's name"):
        type("Größe", (FeatureView,), {"n": Count(windows="1h")}, source=Ride, entity="rider")


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (Count(windows=None), r'windows=None is NoneType; write "1h", \("1h", "24h"\) or "lifetime"'),
        (Count(windows=3600), "windows=3600 is int; write"),
        (Count(windows=("1h", 5)), "windows=.* is tuple; write"),
        (Count(windows="1h", where=True), r"where=True is bool; write a column's name or an expression, such as col"),
        (Count(windows="1h", where=lambda row: row), "where=<function .* is function; write a column"),
        (Count(windows="1h", hop=5), "hop=5 is int; write a span such as"),
        (Count(windows="1h", source="Ride"), "source='Ride' is str; write an event class of the view"),
        (Count(windows="1h", source=(Ride, int)), "source=.* is tuple; write an event class"),
        (Sum(1, windows="1h"), "value=1 is int; write a column's name"),
        (Sum(None, windows="1h"), "value=None is NoneType; write a column's name"),
        (LastN("line", n="5"), "n='5' is str; write a whole number"),
        (LastN("line", n=5.0), "n=5.0 is float; write a whole number"),
        (LastN("line", n=True), "n=True is bool; write a whole number"),
        (LastN("line", n=5, distinct=1), "distinct=1 is int; write True or False"),
        (LastN("line", n=5, within=5), "within=5 is int; write a span"),
        (Sequence("line", 7, n=5), "values=7 is int; write a column's name"),
        (Sequence(["line"], n=5), "values=.* is list; write a column's name"),
        (DecayedCount(half_life=60), "half_life=60 is int; write a span"),
        (Quantile("stops", q="0.5", windows="1h"), "q='0.5' is str; write quantiles from 0 to 1"),
        (Quantile("stops", q=1.5, windows="1h"), "q=1.5; write quantiles from 0 to 1"),
        (Ratio("n", "n", prior=1), "prior=1 is int; write two numbers"),
        (Ratio("n", "n", prior=(1, 2, 3)), "prior=.* is tuple; write two numbers"),
        (Ratio("n", "n", prior=(float("nan"), 1)), "prior=.* both must be 0 or more, and finite"),
        (Ratio(Count(windows="1h"), "n"), "part=Count.* is Count; write a text"),
        (Var("stops", windows="1h", ddof="a"), "ddof='a' is str; write a whole number"),
        (Std("stops", windows="1h", ddof=-1), "ddof=-1; write 0 or 1"),
    ],
)
def test_arguments_of_the_wrong_type_are_told(feature, words):
    """Which, what was found and what to write, of every aggregation by its own signature."""
    with pytest.raises(DeclarationError, match=f"view some · feature wrong: {words}"):
        declare(n=Count(windows="1h"), wrong=feature)


@pytest.mark.parametrize("found", [Ride, Count(windows="1h"), Count, "view", None])
def test_what_is_no_view_is_told(found):
    with pytest.raises(DeclarationError, match="is no view; name a class declared as"):
        plan_of(found)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: declare(n=(Count(windows="1h"),)), "view some · feature n: a tuple; write one feature, with no comma"),
        (lambda: declare(m=Count(windows="1h"), n=[col("m_1h")]), "feature n: a list; write one feature"),
        (lambda: declare(m=Count(windows="1h"), n={"a": Count(windows="1h")}), "feature n: a dict; write one feature"),
        (
            lambda: declare(m=Count(windows="1h"), __annotations__={"n": Count(windows="1h")}),
            "feature n: write n = ... instead of n: ...",
        ),
        (lambda: declare(n=Count(windows="1h", source=())), r"feature n: source=\(\) counts nothing"),
        (lambda: declare(n=Count(windows="1h"), ttl="9" * 5_000 + "d"), "ttl: '9*d' is longer than 36500d"),
        (lambda: declare(n=LastN("line", n=3, within="36501d")), "within: '36501d' is longer than 36500d"),
        *[
            (lambda name=name: declare(**{name: Last("line")}), f"a read has a column '{name}' beside")
            for name in ("rider", "_status", "_age_s")
        ],
        (lambda: declare(n=Count(where=col("stops").shuffle() > 1, windows="1h")), "where .* is random"),
        (
            lambda: declare(n=Last(col("tags").list.sample(1).list.first()), source=Parcel),
            "is random",
        ),
        *[
            (lambda value=value: declare(source=Parcel, entity="code", n=Count(where=value > 1, windows="1h")), words)
            for value, words in [
                (col("tags").explode().str.len_chars(), "another number of rows than it gets; .*list.sum"),
                (col("tags").list.explode().str.len_chars(), "another number of rows"),
                (col("weight").filter(col("weight") > 0), "another number of rows"),
                (col("weight").drop_nulls(), "another number of rows"),
                (col("weight") + pl.Series([1.0, 2.0]), "another number of rows"),
                (col("weight").map_elements(abs, pl.Float64), "runs a function"),
            ]
        ],
        (lambda: declare(n=Count()), r'view some · feature n: no windows; write windows=\("1h", "24h"\)'),
        (lambda: declare(n=Count(windows="1x")), r"feature n · window\[0\]: '1x' is no span of time"),
        (lambda: declare(n=Count(windows="5s")), "a window is 10s to 400d long; '5s' is not"),
        (lambda: declare(n=Count(windows="401d")), "a window is 10s to 400d long"),
        (lambda: declare(n=Count(windows="10m", hop="1h")), "window '10m' is shorter than its hop '1h'"),
        (lambda: declare(n=Count(windows="1h", hop="7m")), "hop '7m' does not divide window '1h'; use one of 1s, 5s"),
        (lambda: declare(n=Count(windows="400d", hop="1s")), "34560000 tiles, at most 100000; write a longer hop"),
        (
            lambda: declare(n=Count(windows="100001s")),
            "divides only into .* tiles of 1 s; write a length .* such as '28h'",
        ),
        (lambda: declare(n=Count(windows="lifetime", hop="1h")), "a lifetime window has no hop"),
        (lambda: declare(n=Count(windows=("1h", "1h"))), "name one window twice"),
        (lambda: declare(n=Sum("line", windows="1h")), "feature n: Sum needs a number, .*line.* is String; cast it"),
        (
            lambda: declare(n=Sum("stop", windows="1h")),
            "value names 'stop', which event Ride lacks; did you mean 'stops'",
        ),
        (lambda: declare(n=Count(where="stops", windows="1h")), "where is Int64, not Boolean; write a comparison"),
        (
            lambda: declare(n=Count(where=col("line") > 1, windows="1h")),
            "where .* does not fit event Ride: cannot compare",
        ),
        (lambda: declare(n=Sum(col("stops").diff(), windows="1h")), "value .* looks at other rows"),
        (
            lambda: declare(n=Count(where=col("stops") > col("stops").mean(), windows="1h")),
            "where .* looks at other rows",
        ),
        (lambda: declare(n=Sum(col("stops").sum().over("line"), windows="1h")), "value .* looks at other rows"),
        (lambda: declare(n=Sum(col("stops", "fare"), windows="1h")), "gives several columns"),
        (
            lambda: declare(n=Min("fine", windows="1h"), source=(Ride, Check)),
            "event Ride lacks.*limit it with source=Check",
        ),
        (lambda: declare(n=Count(windows="1h", source=Check)), "source Check is none of the view's; use one of Ride"),
        (lambda: declare(n=Last("tags"), source=Parcel), "cannot keep .*tags.* of type List"),
        (lambda: declare(n=LastN("line", n=0)), "n=0; a list keeps 1 to 10000"),
        (lambda: declare(n=LastN("line", n=2, within="x")), "feature n · within: 'x' is no span"),
        (lambda: declare(n=Sequence(n=3)), r'no values; write Sequence\("column", ..., n=3\)'),
        (lambda: declare(n=DecayedCount(half_life="h")), "half_life: 'h' is no span"),
        (lambda: declare(n=Count(windows="1h"), n_1h=Count(windows="lifetime"), x=Last("line")), None),
        (
            lambda: declare(n=Count(windows="1h"), n_1=Sequence("line", "stops", n=2), n_1h=Last("line")),
            "feature n_1h: 'n_1h' is already a feature of 'n'; rename one",
        ),
        (lambda: declare(n=Count(windows="1h"), r=Ratio("m", "n")), "feature r: no feature 'm'; there are n"),
        (lambda: declare(nice=Count(windows="1h"), r=Ratio("nise", "nice")), "did you mean 'nice'"),
        (
            lambda: declare(n=Count(windows="1h"), m=Count(windows="2h"), r=Ratio("n", "m")),
            "'n' has windows 1h and 'm' has 2h",
        ),
        (lambda: declare(n=Last("line"), r=Ratio("n", "n")), "'n' is text; Ratio needs numbers"),
        (lambda: declare(n=Count(windows="1h"), r=Ratio("n", "n", prior=(-1, 2))), "both must be 0 or more"),
        (
            lambda: declare(entity="driver", n=Count(windows="1h")),
            "event Ride has no entity column 'driver'; it has ride_id",
        ),
        (
            lambda: declare(entity="fare", n=Count(windows="1h")),
            "entity column Ride.fare is Float64; use an int or a str",
        ),
        (lambda: declare(source=(Ride, Parcel), n=Count(windows="1h")), "'rider' is an int in one source and a str"),
        (declare, "view some: no features; write for example"),
        (lambda: declare(n=Count), "feature n: Count is a class; call it"),
        (lambda: declare(n=Count(windows="1h"), entity=()), 'view some: no entity; add entity="some_column"'),
        (lambda: declare(n=Count(windows="1h"), ttl="soon"), "view some · ttl: 'soon' is no span"),
        *[
            (
                lambda span=span: declare(n=Count(windows="1h"), dedupe=span),
                f"view some · dedupe: '{span}' is no span of",
            )
            for span in ("soon", "0s", "-1m", "10", "1.5h")
        ],
        (
            lambda: declare(source=(Ride, Note), n=Count(windows="1h"), dedupe="10m"),
            'event Note declares none; add id="some_column" to the class arguments of Note, or leave dedupe= out',
        ),
    ],
)
def test_errors_say_where_and_what_to_write(make, words):
    """View, feature and fix on one line, when the class is made."""
    if words is None:
        assert plan_of(make()).features
        return
    with pytest.raises(DeclarationError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_values_may_be_expressions():
    """Derived columns, with a name of their own in a sequence."""
    view = declare(
        twice=Sum(col("stops") * 2, windows="1h"),
        trip=Sequence("line", (col("stops") + 1).alias("next"), n=2),
        long=Count(where=col("line").str.len_chars() > 3, windows="1h"),
        hour=Last(col("at").dt.truncate("1h")),
    )
    assert [feature.name for feature in plan_of(view).features] == [
        "twice_1h",
        "trip_line",
        "trip_next",
        "long_1h",
        "hour",
    ]
    assert plan_of(view).features[-1].dtype == "time"
    assert isinstance(view.twice, Sum)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LastN("line"), r'LastN: argument n is missing; write for example LastN\("column", n=10\)'),
        (lambda: LastN(n=3), r'LastN: argument value is missing; write for example LastN\("column", n=10\)'),
        (lambda: Sequence("line"), r'Sequence: argument n is missing; .* Sequence\("column", n=10\)'),
        (lambda: TopK("line", windows="1h"), r'TopK: argument k is missing; .* TopK\("column", k=3, windows="1h"\)'),
        (DecayedCount, r'DecayedCount: argument half_life is missing; .* DecayedCount\(half_life="1h"\)'),
        (lambda: DecayedSum("fare"), r'DecayedSum: argument half_life is missing; .*DecayedSum\("column", half_life='),
        (lambda: VectorMean("tags", windows="1h"), r"VectorMean: argument dim is missing; .* dim=64"),
        (lambda: Sum(windows="1h"), r'Sum: argument value is missing; .* Sum\("column", windows="1h"\)'),
        (lambda: Ratio("n"), r'Ratio: argument whole is missing; .* Ratio\("clicks", "views"\)'),
        (lambda: Count("line", windows="1h"), r'Count: too many positional arguments; .* Count\(windows="1h"\)'),
        (lambda: Count(window="1h"), r"Count: no argument window=, did you mean windows=\?"),
        (lambda: LastN("line", 5), "LastN: .*; write for example LastN"),
        (lambda: Last("line", n=5), "Last: no argument n=, there are value, windows, where, hop, source"),
        (lambda: Quantile("fare", value="stops"), "Quantile: multiple values for argument 'value'"),
    ],
)
def test_missing_and_unknown_arguments_are_told_with_an_example(make, words):
    """Of every aggregation, by its own signature."""
    with pytest.raises(DeclarationError, match=words):
        make()


def test_they_are_told_with_the_class_and_the_feature():
    """The constructor fails before the class is there; the line that calls it names the feature."""
    with pytest.raises(DeclarationError, match=r"class .*Trips · feature recent: LastN: argument n is missing"):

        class Trips(FeatureView, source=Ride, entity="rider"):
            rides = Count(windows="1h")
            recent = LastN("line")


def test_every_aggregation_tells_missing_arguments():
    for name in dir(aggregations):
        kind = getattr(aggregations, name)
        if isinstance(kind, type):
            with pytest.raises(DeclarationError, match=f"{name}: no argument nonsense="):
                kind(nonsense=1)
