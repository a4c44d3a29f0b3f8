"""Columns of frames as source columns: exact, missing values marked."""

from datetime import UTC, datetime, time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import SchemaError
from headrace.learners import PAD, Bag, Categorical, Dense, InputSpec, column_of


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1) | st.none(), min_size=1))
def test_integers_are_exact_and_nulls_are_pad(values):
    assert column_of(pl.Series(values, dtype=pl.Int64)).tolist() == [PAD if x is None else x for x in values]


@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4), min_size=1))
def test_lists_keep_their_order_and_nulls(rows):
    lists = column_of(pl.Series(rows, dtype=pl.List(pl.Int64)))
    wanted = [[PAD if x is None else x for x in row or []] for row in rows]
    assert [values[:length].tolist() for values, length in zip(lists.values, lists.lengths, strict=True)] == wanted


def test_every_type_that_a_view_or_an_event_has():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "float": [1.5, None],
            "bool": [True, None],
            "time": [moment, None],
            "span": [moment - datetime(2025, 12, 31, tzinfo=UTC), None],
            "small": pl.Series([1, None], dtype=pl.UInt8),
            "kind": pl.Series(["x", None], dtype=pl.Enum(["x"])),
            "texts": [["a", "b"], []],
            "floats": [[0.5], None],
        }
    )
    columns = {name: column_of(frame[name]) for name in frame.columns}
    assert columns["text"].tolist() == ["a", None]
    np.testing.assert_array_equal(columns["float"], [1.5, np.nan])
    assert columns["bool"].tolist() == [1, PAD]
    assert columns["time"].tolist() == [int(moment.timestamp() * 1e6), PAD]
    assert columns["span"].tolist() == [86_400_000_000, PAD]
    assert columns["small"].tolist() == [1, PAD]
    assert columns["kind"].tolist() == ["x", None]
    spec = InputSpec(Categorical("text"), Bag("texts", length=3), Dense("small"), Dense("float"))
    inputs = spec.assemble(columns, 2)
    assert inputs.ids[1, 0] == PAD
    assert inputs.bags[0][0, 0] == inputs.ids[0, 0] != PAD
    np.testing.assert_array_equal(inputs.dense, [[1, 1.5], [np.nan, np.nan]])


@pytest.mark.parametrize(
    "series",
    [
        pl.Series("n", [2**63], dtype=pl.UInt64),
        pl.Series("n", [b"a"]),
        pl.Series("n", [{"a": 1}]),
        pl.Series("n", [time(1)]),
    ],
)
def test_what_has_no_exact_form_is_refused(series):
    with pytest.raises(SchemaError, match="column n"):
        column_of(series)
