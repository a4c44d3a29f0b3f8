"""Which expressions a view takes: those that give each row its own value, alone, in any batch, in any process."""

import json
import math
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache

import numpy as np
import polars as pl
import pytest

from headrace import Count, Event, FeatureView, Last, LastN, Sum, col
from headrace.clock import wall_us
from headrace.errors import DeclarationError
from headrace.features import plan_of
from headrace.features.expressions.failing_rows import VALUE_ERRORS, select_rows
from headrace.features.expressions.row_wise import row_type
from tests import forked

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 12
TYPES = {
    "i": pl.Int64(),
    "f": pl.Float64(),
    "s": pl.String(),
    "o": pl.Boolean(),
    "t": pl.Datetime("us", "UTC"),
    "l": pl.List(pl.Int64()),
    "w": pl.List(pl.String()),
    "n": pl.Struct({"a": pl.Int64(), "b": pl.String()}),
    "y": pl.Binary(),
}
NAMESPACES = {
    "": "ifst",
    "str": "s",
    "dt": "t",
    "list": "lw",
    "bin": "y",
    "struct": "n",
    "name": "i",
}
ARGUMENTS = [
    (),
    (1,),
    ("1h",),
    ("a",),
    (2, 3),
    ("a", "b"),
    (["a", "b"],),
    ([1, 2],),
    ([1.0, 2.0],),
    (pl.Int64,),
    (pl.String,),
    (pl.col("i"),),
    (pl.col("s"),),
    (pl.col("l"),),
    ({"a": "b"},),
    ("%Y",),
    (pl.Datetime, "%Y"),
    ("hex",),
    ("UTC",),
    (pl.Struct({"a": pl.Int64}),),
    (pl.col("i") > 1,),
    (START,),
]
SKIPPED = {"deserialize", "pipe", "pipe_with_dtype", "inspect", "map", "map_elements", "map_batches", "meta"}


def rows(seed=0):
    """Events of every type, with nulls, repeated values and values out of the ordinary."""
    rng = np.random.default_rng(seed)

    def some(values):
        return [values[index] for index in rng.integers(0, len(values), ROWS)]

    return pl.DataFrame(
        {
            "i": some([None, 0, 1, 2, 3, -5, 60]),
            "f": some([None, 0.0, 0.5, -1.5, math.nan, math.inf, 1e9]),
            "s": some([None, "", "a", "b", "a,b", "12", "2026"]),
            "o": some([None, True, False]),
            "t": some([None, *(START + timedelta(hours=7 * i, microseconds=i) for i in range(5))]),
            "l": some([None, [], [1], [2, None, 1], [3, 3]]),
            "w": some([None, [], ["a"], ["b", None, "a"]]),
            "n": some([None, {"a": 1, "b": "x"}, {"a": None, "b": None}]),
            "y": some([None, b"", b"ab", b"12"]),
        },
        schema=TYPES,
    )


def roots():
    """(label, what has methods) of Polars' expressions and their namespaces."""
    for space, columns in NAMESPACES.items():
        for column in columns:
            yield f"{column}.{space}", getattr(pl.col(column), space) if space else pl.col(column)
    yield "s.cat", pl.col("s").cast(pl.Categorical).cat
    yield "i.arr", pl.concat_arr(pl.col("i"), pl.col("i") + 1).arr


def made(method, arguments):
    """The expression that a method makes, None where these are not its arguments."""
    try:
        found = method(*arguments)
    except Exception:  # noqa: BLE001 - of any kind
        return None
    return found if isinstance(found, pl.Expr) else None


def candidates():
    """(name, expression) of every method of Polars' expressions that takes one of `ARGUMENTS`."""
    for label, root in roots():
        for name in sorted(set(dir(root)) - SKIPPED):
            method = None if name.startswith("_") else getattr(root, name, None)
            for number, arguments in enumerate(ARGUMENTS if callable(method) else ()):
                # A time taken for a length, as `pad_end` would, is one of petabytes.
                takes = label in ("t.", "t.dt") or START is not next(iter(arguments), None)
                if takes and (expression := made(method, arguments)) is not None:
                    yield f"{label}.{name}({number})", expression


@cache
def taken():
    """What of `candidates` a view takes: name -> (expression, its value alone on each row, None where it has none)."""
    found, frame = {}, rows()
    for name, expression in candidates():
        with suppress(DeclarationError):
            row_type(expression, TYPES, "value", "the rows")
            found[name] = expression, [value_of(expression, frame[i : i + 1]) for i in range(ROWS)]
    return found


def value_of(expression, frame):
    """The values of a frame as text, None where the expression raises."""
    try:
        return whole(frame.select(expression.alias("v"))["v"], frame.height)
    except VALUE_ERRORS:
        return None


def whole(values, count):
    """`count` values as text; a constant is given once."""
    return [repr(value) for value in (values if len(values) == count else values.new_from_index(0, count)).to_list()]


@pytest.mark.filterwarnings("ignore")
def test_every_method_of_polars_is_refused_or_gives_each_row_its_own_value():
    """Alone, in the whole frame, and in a frame of other order and company; or none, wherever the row is."""
    assert len(taken()) > 500
    frame = rows()
    order = np.random.default_rng(1).permutation(ROWS)[: ROWS - 3].tolist()
    for name, (expression, alone) in taken().items():
        for picked in (list(range(ROWS)), order):
            values, failures = select_rows(frame[picked], [expression.alias("v")])
            failed = [] if failures is None else [picked[row] for row in failures.index.tolist()]
            good = [i for i in picked if alone[i] is not None]
            assert failed == [i for i in picked if alone[i] is None], name
            assert not good or whole(values["v"], len(good)) == [alone[i][0] for i in good], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_taken_has_the_same_values_in_another_process():
    """One that met other texts before, and draws other random numbers."""
    code = (
        "import json, warnings; warnings.simplefilter('ignore'); import polars as pl\n"
        "pl.set_random_seed(99); keep = pl.Series(['zz', '12', 'b', 'a'], dtype=pl.Categorical)\n"
        "from tests.features.test_row_wise import taken\n"
        "print(json.dumps({name: alone for name, (_, alone) in taken().items()}))"
    )
    there = forked.run(["-c", code], check=True)
    assert json.loads(there.stdout) == {name: alone for name, (_, alone) in taken().items()}


class Reading(Event, topic="readings", key="meter", time="at", id="reading"):
    """Of a meter."""

    reading: int
    at: datetime
    meter: int
    level: str
    amount: float | None
    tags: list[str]


def declare(**features):
    return type("Meter", (FeatureView,), features, source=Reading, entity="meter")


DEPENDENT = {
    "codes of a Categorical": [
        col("level").cast(pl.Categorical).to_physical(),
        col("level").cast(pl.Categorical).cat.physical(),
        col("tags").cast(pl.List(pl.Categorical)).to_physical().list.sum(),
        col("level").cast(pl.Categorical).to_physical() + 1,
    ],
    "hashes with Polars' own function": [col("level").hash(), col("level").hash(3) % 8, pl.struct("level").hash()],
    "is random": [
        col("amount").shuffle(),
        col("amount").sample(fraction=1.0),
        col("tags").list.sample(1).list.first(),
        col("amount").shuffle(seed=3) * 2,
    ],
    "looks at other rows": [
        pl.len(),
        col("amount") - col("amount").shift(1),
        col("amount") + col("amount").cum_sum(),
        col("amount") - col("amount").mean(),
        pl.when(col("amount").is_first_distinct()).then(1).otherwise(2),
        col("amount").rank() + 1,
        col("amount").sort_by("at"),
        col("amount").over("level"),
        col("amount").fill_null(strategy="forward"),
        col("level").str.to_date(),
        pl.int_range(pl.len()),
    ],
    "another number of rows": [
        col("amount") + pl.Series([1.0]),
        col("amount").drop_nulls() + 1,
        pl.lit(pl.Series([1])),
    ],
    "cannot look into": [col("tags").list.eval(pl.element().str.len_chars()).list.sum()],
    "holds the clock's time of its declaration": [],
}


@pytest.mark.parametrize(("words", "expressions"), DEPENDENT.items())
def test_values_that_depend_on_more_than_the_row_are_refused_in_every_place(words, expressions):
    """As a value, in `where=`, in a list, and in a feature made of others."""
    if words.startswith("holds"):
        now = datetime.fromtimestamp(wall_us() // 1_000_000, UTC) - timedelta(microseconds=77)
        local = now.astimezone(timezone(timedelta(hours=5, minutes=45))).replace(tzinfo=None)
        expressions = [
            (pl.lit(now) - col("at")).dt.total_seconds(),
            (col("at") > now - timedelta(days=30)).cast(pl.Int64),
            (col("at").dt.replace_time_zone(None) > local).cast(pl.Int64),
        ]
    for expression in expressions:
        for make in (
            lambda e: {"n": Sum(e, windows="1h")},
            lambda e: {"n": Count(where=e.cast(pl.Int64) > 1, windows="1h")},
            lambda e: {"n": Last(e)},
            lambda e: {"n": LastN(e, n=2)},
        ):
            with pytest.raises(DeclarationError, match=f"view meter · feature n: .*{words}"):
                declare(**make(expression))
    held = {"amount": Last("amount"), "tags": LastN("level", n=3), "level": Last("level"), "at": Last("at")}
    for expression in expressions:
        with pytest.raises(DeclarationError, match=f"view meter · feature made: .*{words}"):
            declare(**held, made=expression)


def test_what_is_the_same_everywhere_is_taken():
    """Fixed times, closed sets, texts, categories by their names."""
    for value in [
        col("level").cast(pl.Enum(["low", "high"])).to_physical(),
        col("level").cast(pl.Categorical).cast(pl.String).str.len_chars(),
        (col("at") - datetime(2026, 1, 1, tzinfo=UTC)).dt.total_days(),
        (col("at") > date(2026, 1, 1)).cast(pl.Int64),
        (col("at") <= datetime.now(UTC).replace(hour=23, minute=59, second=59, microsecond=999_999)).cast(pl.Int64),
        col("level").replace_strict({"low": 0, "high": 1}, default=None),
        pl.when(col("level").is_in(["low", "high"])).then(1).otherwise(0),
        pl.when(col("level").is_in(pl.Series(["low"]))).then(1).otherwise(0),
        col("tags").list.get(1, null_on_oob=True).str.len_chars(),
        col("level").cast(pl.Int64),
        col("amount").name.keep().clip(0, 5),
    ]:
        assert plan_of(declare(n=Sum(value, windows="1h"))).features


@pytest.mark.filterwarnings("ignore:Comparisons with None")
@pytest.mark.parametrize(
    "condition",
    [
        lambda: col("amount") == None,  # noqa: E711
        lambda: col("amount") != None,  # noqa: E711
        lambda: col("amount").eq(None),
        lambda: col("amount").ne(None),
        lambda: col("amount") > None,
        lambda: pl.lit(None) == col("amount"),
        lambda: col("amount") == pl.lit(None, dtype=pl.Float64),
        lambda: (col("level") == "low") & ~(col("amount") == None),  # noqa: E711
        lambda: col("amount").is_in([None]),
        lambda: col("amount").is_in([1.0, None]),
        lambda: ~col("level").is_in(["low", None]),
    ],
)
def test_a_comparison_with_none_is_refused_with_is_null(condition):
    """It is null for every row, so it would count nothing, or everything."""
    with pytest.raises(DeclarationError, match=r"None.*col\(.*\)\.is_null\(\)"):
        declare(n=Count(where=condition(), windows="1h"))
    with pytest.raises(DeclarationError, match="None"):
        declare(amount=Last("amount"), level=Last("level"), made=condition())


@pytest.mark.filterwarnings("ignore:Comparisons with None")
def test_comparisons_that_know_null_are_taken():
    for condition in [
        col("amount").is_null(),
        col("amount").eq_missing(None),
        col("amount").ne_missing(None),
        col("amount").is_in([1.0, None], nulls_equal=True),
        col("level").is_in([]),
        col("amount").fill_null(0) > 1,
    ]:
        assert plan_of(declare(n=Count(where=condition, windows="1h"))).features


def test_and_and_or_of_python_are_told_by_polars():
    """They run before a view sees anything; Polars' error names `&` and `|`."""
    with pytest.raises(TypeError, match="&"):
        declare(n=Count(where=col("amount") > 1 and col("level") == "low", windows="1h"))
