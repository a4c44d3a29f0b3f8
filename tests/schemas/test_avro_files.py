"""Avro container files: what Polars can read and what it cannot come out the same."""

import fastavro
import polars as pl
import pytest

from headrace.errors import DecodeError
from headrace.streams.files.avro import read_avro_file
from headrace.streams.files.wanted import Wanted

ALL_COLUMNS = Wanted({}, None)
ENUM = {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}
ROWS = [{"id": 1, "kind": "a", "tags": ["x"]}, {"id": 2, "kind": None, "tags": []}]


def write(path, kind, rows=ROWS):
    fields = [("id", "long"), ("kind", kind), ("tags", {"type": "array", "items": "string"})]
    schema = {"type": "record", "name": "Row", "fields": [{"name": name, "type": type_} for name, type_ in fields]}
    with path.open("wb") as file:
        fastavro.writer(file, schema, rows)
    return path


@pytest.mark.parametrize("kind", [["null", "string"], ["null", ENUM], ["null", "string", "long"]])
def test_rows_come_out_whatever_the_types(tmp_path, kind):
    """Nullable text is read by Polars; a nullable enum, which stops Polars, and a wider union by fastavro."""
    found = read_avro_file(write(tmp_path / "rows.avro", kind), ALL_COLUMNS)
    assert found.to_dicts() == ROWS
    assert found["id"].dtype == pl.Int64


@pytest.mark.parametrize("damage", [lambda data: b"no avro", lambda data: data[:40], lambda data: b""])
def test_what_is_no_avro_is_one_error(tmp_path, damage):
    """The error names the file."""
    path = write(tmp_path / "rows.avro", ["null", ENUM])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DecodeError, match=r"rows\.avro"):
        read_avro_file(path, ALL_COLUMNS)
