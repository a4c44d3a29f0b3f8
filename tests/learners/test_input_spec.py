from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DeclarationError, SchemaError
from headrace.features import hash_text
from headrace.learners import PAD, Bag, Categorical, Dense, Derived, InputSpec, Match
from headrace.learners.input_spec import as_ids
from tests.shelves import SPEC, Lists, Stream


def lists(*rows, width=4):
    values = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
    return Lists(values, np.array([len(row) for row in rows], dtype=np.int64))


@settings(max_examples=100)
@given(st.data())
def test_match_equals_its_definition(data):
    rows = data.draw(st.integers(1, 4))
    held = [data.draw(st.lists(st.integers(0, 3), max_size=4)) for _ in range(data.draw(st.sampled_from([1, rows])))]
    wanted = [data.draw(st.integers(0, 3)) for _ in range(data.draw(st.sampled_from([1, rows])))]
    spec = InputSpec(*(Match(kind, "c", "l", kind) for kind in ("any", "count", "recency")))
    dense = spec.assemble({"c": np.array(wanted), "l": lists(*held)}, rows).dense
    for i in range(rows):
        row, c = held[i % len(held)], wanted[i % len(wanted)]
        recency = 1 / (1 + row.index(c)) if c in row else 0.0
        np.testing.assert_allclose(dense[i], [float(c in row), row.count(c), recency], rtol=1e-6)


def test_one_row_of_the_entity_holds_for_every_candidate():
    spec = InputSpec(Categorical("who"), Categorical("thing"), Bag("recent", length=3), Dense("reads"))
    got = spec.assemble(
        {"who": np.array([7]), "thing": np.array([1, 2]), "recent": lists([5, 6]), "reads": np.array([2.5])}, 2
    )
    assert got.ids.tolist() == [[7, 1], [7, 2]]
    assert got.bags[0].tolist() == [[5, 6, PAD]] * 2
    assert got.bags[0].strides[0] == 0
    assert got.dense.tolist() == [[2.5], [2.5]]
    assert got.fingerprint == spec.fingerprint


def test_transforms_and_missing_numbers():
    names = ("identity", "log1p", "signed_log1p", "sqrt")
    spec = InputSpec(*(Dense(name, "x", name, scale=2.0) for name in names))
    x = np.array([4.0, -4.0, np.nan, np.inf, 1e300])
    got = spec.assemble({"x": x}, 5).dense
    np.testing.assert_allclose(got[0], [8, np.log1p(8), np.log1p(8), np.sqrt(8)], rtol=1e-6)
    np.testing.assert_allclose(got[1], [-8, 0, -np.log1p(8), 0], rtol=1e-6)
    assert np.isnan(got[2:4]).all()
    assert got[4, 0] == np.finfo(np.float32).max  # large, not missing


def test_missing_ids_are_pad_and_missing_numbers_are_nan():
    spec = InputSpec(Categorical("a"), Categorical("b"), Dense("n"))
    columns = {"a": np.array([3.0, np.nan]), "b": np.array(["x", None], dtype=object), "n": np.array([PAD, 5])}
    got = spec.assemble(columns, 2)
    assert got.ids[0, 0] == 3
    assert got.ids[1].tolist() == [PAD, PAD]
    np.testing.assert_array_equal(got.dense[:, 0], [np.nan, 5.0])


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5]),
        np.array([1e19]),
        np.array([np.inf]),
        np.array([2.0**53 + 2]),
        pl.Series([2**60 + 1, None]).to_numpy(),
        np.array([2**63], dtype=np.uint64),
        np.array([2**63], dtype=object),
        np.array([b"a"], dtype=object),
        np.array([b"a"]),
        np.array([1, "a"], dtype=object),
        np.array([datetime(2026, 1, 1, tzinfo=UTC)], dtype=object),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
    ],
)
def test_an_id_that_is_not_exact_is_refused(values):
    with pytest.raises(SchemaError, match="id"):
        InputSpec(Categorical("a")).assemble({"a": values}, len(values))


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1) | st.none(), min_size=1))
def test_integers_with_nulls_are_exact_as_objects(values):
    ids = as_ids(np.array(values, dtype=object))
    assert ids.tolist() == [PAD if value is None else value for value in values]


def test_a_missing_candidate_matches_nothing():
    spec = InputSpec(*(Match(kind, "c", "l", kind) for kind in ("any", "count", "recency")))
    got = spec.assemble({"c": np.array([PAD, 1]), "l": Lists(np.array([[PAD, 1]]), np.array([2]))}, 2).dense
    assert got.tolist() == [[0, 0, 0], [1, 1, 0.5]]


def test_text_becomes_its_hash_wherever_it_comes_from():
    spec = InputSpec(Categorical("a"))
    wanted = np.asarray(hash_text(["x", "yé"]))
    for column in (np.array(["x", "yé"]), np.array(["x", "yé"], dtype=object)):
        np.testing.assert_array_equal(spec.assemble({"a": column}, 2).ids[:, 0], wanted)


def doubled(columns):
    return columns["x"] * 2


def test_derived_numbers():
    spec = InputSpec(Derived("d", doubled, ("x",)))
    assert spec.assemble({"x": np.array([1.5])}, 3).dense[:, 0].tolist() == [3.0] * 3
    with pytest.raises(SchemaError, match="derived 'd' gave shape"):
        spec.assemble({"x": np.array([1.0, 2.0])}, 3)


def test_a_derived_number_gets_the_columns_it_names_and_no_other():
    spec = InputSpec(Derived("d", doubled, ("y",)))
    with pytest.raises(SchemaError, match="derived 'd': no column 'x': its function gets y"):
        spec.assemble({"x": np.array([1.0]), "y": np.array([1.0])}, 1)


def test_a_longer_list_is_cut_to_its_newest():
    got = InputSpec(Bag("l", length=2)).assemble({"l": lists([1, 2, 3], [])}, 2)
    assert got.bags[0].tolist() == [[1, 2], [PAD, PAD]]


def test_a_missing_column_is_named_with_its_nearest():
    with pytest.raises(SchemaError, match="'recent' is missing; nearest is 'recnt'"):
        InputSpec(Bag("recent")).assemble({"recnt": lists([1])}, 1)


@pytest.mark.parametrize("column", [np.zeros(2), np.zeros((3, 1))])
def test_a_column_of_another_length_is_refused(column):
    with pytest.raises(SchemaError, match="'x' has shape"):
        InputSpec(Dense("x")).assemble({"x": column}, 3)
    with pytest.raises(SchemaError, match="must hold lists"):
        InputSpec(Bag("x")).assemble({"x": column}, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "at least one field"),
        ((Dense("a"), Dense("a")), "its own name"),
        ((Bag("a", length=0),), "length 0"),
        ((Dense("a", transform="cube"),), "transform 'cube'"),
        ((Match("a", "b", "c", kind="near"),), "kind 'near'"),
        ((Categorical("c"), Bag("a", candidate="c")), "no id of table 'a'"),
    ],
)
def test_wrong_declarations_are_refused(fields, message):
    with pytest.raises(DeclarationError, match=message):
        InputSpec(*fields)


def test_the_fingerprint_follows_the_declaration():
    assert InputSpec(Dense("a")).fingerprint == InputSpec(Dense("a", "a")).fingerprint
    assert InputSpec(Dense("a")).fingerprint != InputSpec(Dense("a", scale=2.0)).fingerprint
    assert (
        InputSpec(Derived("d", doubled, ("x",))).fingerprint
        != InputSpec(Derived("d", doubled, ("x",), version=2)).fingerprint
    )


def test_what_a_spec_says_of_itself():
    assert SPEC.columns == ("book", "shop", "recent", "age", "price")
    assert SPEC.tables == ("book", "shop")
    assert SPEC.dense_names == ("age", "price", "seen")
    assert "Bag(name='recent'" in repr(SPEC)
    assert len(Stream().batch(7)[0]) == 7


@pytest.mark.parametrize("values", [np.array([2**24 + 2], np.float32), np.array([2**11 + 2], np.float16)])
def test_a_float_of_few_digits_is_an_id_only_while_it_is_exact(values):
    exact = values.dtype.type(2 ** (np.finfo(values.dtype).nmant + 1))
    assert as_ids(np.array([exact, np.nan], values.dtype)).tolist() == [int(exact), PAD]
    with pytest.raises(SchemaError, match=rf"beyond which a {values.dtype} stands for several integers"):
        as_ids(values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": np.array([1.5, 2])}, r"inputs · column 'a': id 1.5: not a whole number"),
        ({"r": Lists(np.array([[1.5, 2], [3, 4]]), np.array([2, 2]))}, r"inputs · column 'r': id 1.5"),
        (
            {"x": np.array(["3", "many"])},
            r"inputs · Dense 'x': could not convert string to float: .*'many'.*; give numbers",
        ),
        ({"x": np.array([1j, 2])}, "inputs · Dense 'x': complex128 is no number"),
        ({"r": [[1, 2], [3]]}, "column 'r' must hold lists, 2 or 1"),
        ({"r": None}, "column 'r' must hold lists, 2 or 1"),
        (
            {"r": Lists(np.ones((2, 2), int), np.array([2, 9]))},
            r"column 'r': lists of values \(2, 2\) and 2 lengths up to 9",
        ),
        ({"r": Lists(np.ones((3, 2), int), np.array([2, 2]))}, r"column 'r': lists of values \(3, 2\) and 2 lengths"),
    ],
)
def test_what_a_field_cannot_read_is_named_with_its_column(given, message):
    spec = InputSpec(Categorical("a"), Dense("x"), Bag("r", length=2), Match("m", "a", "r"))
    columns = {"a": np.array([1, 2]), "x": np.zeros(2), "r": Lists(np.ones((2, 2), int), np.array([2, 1]))}
    spec.assemble(columns, 2)
    with pytest.raises(SchemaError, match=message):
        spec.assemble({**columns, **given}, 2)
