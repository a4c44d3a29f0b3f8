"""Tables of other libraries and of plain Python become the same frame, or one error that names the column."""

from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import SchemaError
from headrace.schemas.tables import frame_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FRAME = pl.DataFrame({"user": [1, 2], "at": [NOON, NOON + timedelta(seconds=1)], "tag": ["a", None]})
TABLE = FRAME.to_arrow(compat_level=pl.CompatLevel.oldest())

ODD_UNION = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])


class Streams:
    """What pandas frames are to others: a table by Arrow's C interface, with an index that has no name."""

    def __init__(self, table):
        self._table = table.append_column("__index_level_0__", pa.array(range(table.num_rows)))

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Refuses:
    """A frame with a column of a type that Arrow does not have, such as complex numbers of pandas."""

    def __arrow_c_stream__(self, requested_schema=None):
        raise NotImplementedError("no such type")


class Interchanges:
    """What a frame of an older library is to others."""

    def __init__(self, table):
        self._table = table

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return self._table.__dataframe__(nan_as_null, allow_copy)


MAKERS = {
    "polars": lambda: FRAME,
    "table": lambda: TABLE,
    "batch": lambda: TABLE.to_batches()[0],
    "reader": TABLE.to_reader,
    "c stream": lambda: Streams(TABLE),
    "interchange": lambda: Interchanges(TABLE),
    "duckdb": lambda: duckdb.arrow(TABLE),
    "dicts": FRAME.to_dicts,
    "ordered dicts": lambda: [OrderedDict(row) for row in FRAME.to_dicts()],
    "lists": lambda: FRAME.to_dict(as_series=False),
    "series": FRAME.to_dict,
    "arrays": lambda: {"user": np.array([1, 2]), "at": TABLE["at"].to_pylist(), "tag": ("a", None)},
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_table_of_any_library_is_the_same_frame(maker):
    found = frame_of(MAKERS[maker]())
    assert_frame_equal(found.lazy().collect().with_columns(pl.col("at").dt.convert_time_zone("UTC")), FRAME)


def test_a_lazy_frame_stays_lazy():
    assert isinstance(frame_of(FRAME.lazy()), pl.LazyFrame)


def test_rows_may_lack_what_others_have():
    assert frame_of([{"a": 1}, {"b": "x", "a": None}]).rows() == [(1, None), (None, "x")]


def test_zones_that_are_offsets_become_utc():
    zone = timezone(timedelta(hours=5, minutes=30))
    found = frame_of([{"at": NOON.astimezone(zone)}, {"at": None}])
    assert found["at"].to_list() == [NOON, None]


@pytest.mark.parametrize("found", ["log.parquet", ["a.parquet", "b.parquet"], [], {}, 5, [1, 2], FRAME["user"]])
def test_what_is_no_table_is_left_to_others(found):
    assert frame_of(found) is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{"a": 1}, {"a": "x"}], "column a: its values are of no one type"),
        ([{"a": NOON}, {"a": NOON.replace(tzinfo=None)}], "column a: some times have a zone and others none"),
        ({"a": [1, 2], "b": [1]}, "columns a, b have 2, 1 values; give all of them as many"),
        ({"a": 5}, "column a: 5 is no list of values"),
        (pa.array([1, 2]), "cannot be read as a table"),
        (pa.table([[1], [2]], names=["a", "a"]), "a Table has 2 columns 'a'; rename all but one"),
        (Refuses(), "a Refuses cannot be read as a table: no such type"),
        (pa.table({"a": pa.array([1], pa.decimal256(60))}), r"column a: type decimal256\(60, 0\) cannot be read"),
        (pa.table({"a": ODD_UNION}), "column a: type dense_union<0: int64=0> cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_error(found, message):
    with pytest.raises(SchemaError, match=message):
        frame_of(found)
