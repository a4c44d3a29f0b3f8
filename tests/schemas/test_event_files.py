"""Files of events as other tools write them: the declared columns, whatever else is in the file, or one clear error."""

import bz2
import gzip
import io
import json
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product

import fastavro
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import AliasChoices

from headrace.errors import SchemaError, SourceError
from headrace.pipelines import Intake
from headrace.schemas import Event, Field, codec_for, spec_of
from headrace.schemas.conform import conform
from headrace.schemas.tables import frame_of
from headrace.streams.file_source import FileSource
from headrace.streams.files.finder import find_files
from headrace.streams.files.reading import iter_events, read_events
from tests.logs import capture_logs
from tests.turnstiles import Shelf, drain

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Order(Event, topic="orders", key="shop", time="at", id="order_id"):
    """An order, with a column of each type."""

    order_id: str
    at: datetime
    shop: str = Field(validation_alias=AliasChoices("shop", "store"))
    count: int | None = None
    price: float | None = None
    paid: bool | None = None
    due: datetime | None = None
    note: str | None = None
    tags: list[int] | None = None


SPEC = spec_of(Order)


def orders(rows) -> pl.DataFrame:
    """Orders from dicts; the others of their columns are null."""
    base = {"order_id": "a", "at": NOON, "shop": "007"}
    return pl.DataFrame([base | row for row in rows], schema=SPEC.polars)


def read(path) -> pl.DataFrame:
    """All events of a file, read whole and in pieces alike."""
    [file] = find_files(path).files
    whole = read_events(file, Order)
    pieces = list(iter_events(file, Order, 2))
    assert_frame_equal(pl.concat([whole[:0], *pieces]), whole)
    return whole


def flow(*paths) -> tuple[pl.DataFrame, Shelf]:
    """What the live flow makes of files: good rows, and dead letters."""
    shelf = Shelf()
    intake = Intake([Order], dead_letters=shelf)
    return pl.concat([intake.decode(batch).frame for batch in drain(FileSource(list(paths), Order))]), shelf


def csv_file(folder, text):
    path = folder / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# CSV


@pytest.mark.parametrize("column", ["count", "price", "paid", "due", "note", "tags"])
def test_an_optional_csv_column_may_be_empty_in_every_row(tmp_path, column):
    path = csv_file(tmp_path, f"order_id,at,shop,{column}\na,2026-01-01T12:00:00Z,007,\nb,2026-01-01T12:00:00Z,007,\n")
    assert_frame_equal(read(path), orders([{}, {"order_id": "b"}]))


def test_csv_values_are_of_the_declared_types_from_the_first_row_to_the_last(tmp_path):
    """Whole numbers in a float column, floats that are whole in an int column, types that change in other columns."""
    head = "order_id,at,shop,count,price,paid,other\n"
    rows = [f"{n},2026-01-01T12:00:00Z,00{n % 3},{n},{n},true,{n}\n" for n in range(10_001)]
    path = csv_file(tmp_path, head + "".join(rows) + "x,2026-01-01 12:00:00Z,010,7.0,0.5,False,text\n")
    found = read(path)
    assert found.height == 10_002
    assert found["price"][-1] == 0.5
    assert found["count"][-1] == 7
    assert found["shop"].unique().sort().to_list() == ["000", "001", "002", "010"]
    assert found["paid"].to_list() == [True] * 10_001 + [False]


def test_csv_text_with_newlines_marks_and_empty_texts(tmp_path):
    text = '\ufefforder_id,at,shop,note\r\n"a\nb",2026-01-01T12:00:00Z,"x,""y""",\r\nc,2026-01-01T12:00:00Z,z,""\r\n'
    found = read(csv_file(tmp_path, text))
    assert found.select("order_id", "shop", "note").rows() == [("a\nb", 'x,"y"', None), ("c", "z", "")]


def test_a_csv_may_hold_quotes_in_values_that_are_not_quoted(tmp_path):
    """An odd number of them: 5" is five inches."""
    text = 'order_id,at,shop,note\na,2026-01-01T12:00:00Z,5" pipe,x\nb,2026-01-01T12:00:00Z,"y","""z"\n'
    assert read(csv_file(tmp_path, text)).select("shop", "note").rows() == [('5" pipe', "x"), ("y", '"z')]


def test_a_last_csv_line_without_newline_is_whole(tmp_path):
    assert read(csv_file(tmp_path, "order_id,at,shop\na,2026-01-01T12:00:00Z,007")).height == 1


HEAD = b"order_id,at,shop,count,price\n"
ROW = b"a,2026-01-01T12:00:00Z,007,1,1\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (HEAD + ROW + b"\n\n" + ROW[:10], SourceError, "log.csv cannot be read: line 5 has 2 values and the header 5"),
        (HEAD + ROW + b"a,2026-01-01,007,1,1,1\n", SourceError, "line 3 has 6 values and the header 5"),
        (
            HEAD + ROW + b"\n" + ROW.replace(b",1,1", b",x,1"),
            SchemaError,
            "line 4 · column count: 'x' is no whole number",
        ),
        (
            HEAD + ROW.replace(b",1,1", b',1,"1,5"'),
            SchemaError,
            "line 2 · column price: '1,5' .* decimal commas are not",
        ),
        ((HEAD + ROW).replace(b",", b";"), SourceError, "header 'order_id;at;shop;count;price' is parted by ';'"),
        ((HEAD + ROW).decode().encode("utf-16"), SourceError, "it is UTF-16 or UTF-32 text; write it as UTF-8"),
        (HEAD + ROW.replace(b"007", b"M\xfc"), SourceError, "it is no CSV of UTF-8 text"),
        (b"order_id,at,at,shop\n", SourceError, "column 'at' is in the header 2 times"),
        (b"order_id,at\na,2026-01-01T12:00:00Z\n", SchemaError, "event Order.shop: no such column"),
        (
            (HEAD + ROW).replace(b"shop", b"shopp"),
            SchemaError,
            "there are order_id, at, shopp, count, price; did you mean 'shopp'",
        ),
        (
            HEAD + ROW.replace(b"2026-01-01T12:00:00Z", b"01/02/2026"),
            SchemaError,
            "column at: '01/02/2026' can be read as",
        ),
        (HEAD + ROW.replace(b"2026-01-01T12:00:00Z", b"today"), SchemaError, "column at: 'today' is no ISO 8601 time"),
        (
            b"".join([HEAD, *(ROW.replace(b"2026-01-01T12:00:00Z", at) for at in (b"1767268800", b"03/04/2026"))]),
            SchemaError,
            "column at: '1767268800' is a bare number and '03/04/2026' is not; write all of them as numbers of the",
        ),
        (HEAD + ROW + ROW.replace(b"Z", b""), SchemaError, "has a zone and '2026-01-01T12:00:00' has none"),
        (HEAD + ROW + ROW.replace(b"2026-01-01T12:00:00Z", b"13/01/2026"), SchemaError, "are of two formats"),
        (HEAD + ROW.replace(b"00Z", b"00.1234567Z"), SchemaError, "has digits below a microsecond"),
        (HEAD + ROW.replace(b"2026-01-01T12:00:00Z", b"1767268800000"), SchemaError, "event Order.at: found Int64"),
        (HEAD + ROW + ROW.replace(b"007", b'"007') + ROW, SourceError, "row that begins on line 3 has a quoted value"),
        (HEAD + ROW.replace(b"007", b'"00"7"') + ROW, SourceError, "row that begins on line 2 has a quoted value"),
    ],
)
def test_a_csv_that_cannot_be_read_names_file_line_and_column(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read(csv_file(tmp_path, text))


@pytest.mark.parametrize(
    ("texts", "moment"),
    [
        (["2026-02-01", "2026-02-01T00:00", "2026-02-01 00:00:00.000"], datetime(2026, 2, 1, tzinfo=UTC)),
        (
            ["2026-02-01T05:30:00+05:30", "2026-02-01T00:00:00Z", "2026-01-31 19:00-0500"],
            datetime(2026, 2, 1, tzinfo=UTC),
        ),
        (["31/01/2026", "31/01/2026"], datetime(2026, 1, 31, tzinfo=UTC)),
        (["01/31/2026 10:00"], datetime(2026, 1, 31, 10, tzinfo=UTC)),
        (["2026/01/02"], datetime(2026, 1, 2, tzinfo=UTC)),
        (["03/03/2026"], datetime(2026, 3, 3, tzinfo=UTC)),
    ],
)
def test_times_that_can_be_read_in_one_way_are(tmp_path, texts, moment):
    path = csv_file(tmp_path, "order_id,at,shop\n" + "".join(f"a,{text},s\n" for text in texts))
    assert read(path)["at"].to_list() == [moment] * len(texts)


def test_a_given_format_decides(tmp_path):
    path = csv_file(tmp_path, "order_id,at,shop\na,01/02/2026,s\nb,2026-02-03,s\n")
    [file] = find_files(path, csv_time_format="%d/%m/%Y").files
    assert [at.date() for at in read_events(file, Order)["at"]] == [date(2026, 2, 1), date(2026, 2, 3)]


@given(rows=st.lists(st.tuples(st.integers(0, 2**40), st.sampled_from(["Z", "+00:00", ""])), min_size=1, max_size=9))
@settings(max_examples=40)
def test_pieces_of_a_csv_mean_what_the_whole_means(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    moments = [NOON + timedelta(microseconds=us) for us, _ in rows]
    texts = [at.strftime("%Y-%m-%dT%H:%M:%S.%f") + zone for at, (_, zone) in zip(moments, rows, strict=True)]
    path = csv_file(folder, "order_id,at,shop\n" + "".join(f"a,{text},s\n" for text in texts))
    if len({zone == "" for _, zone in rows}) > 1:
        with pytest.raises(SchemaError, match="has a zone and"):
            read(path)
    else:
        assert read(path)["at"].to_list() == moments


# Compressed text


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz", "log.csv.bz2", "log.ndjson.bz2", "log.jsonl.zst"])
def test_compressed_text_is_read(tmp_path, name):
    text = (
        HEAD + ROW
        if ".csv" in name
        else b'{"order_id":"a","at":"2026-01-01T12:00:00Z","shop":"007","count":1,"price":1}'
    )
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "zst": pa.Codec("zstd").compress}[name.rpartition(".")[2]]
    data = compress(text)
    (tmp_path / name).write_bytes(data.to_pybytes() if isinstance(data, pa.Buffer) else data)
    wanted = orders([{"count": 1, "price": 1.0}])
    assert_frame_equal(read(tmp_path / name), wanted)
    assert_frame_equal(flow(tmp_path / name)[0], wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("log.parquet.gz", r"only .jsonl, .ndjson, .csv are read compressed as a whole; decompress it"),
        ("log.jsonl.xz", r"no reader for '.xz'; use one of .* of which .* may be compressed \(.gz, .bz2, .zst\)"),
        ("log.csv.gz", r"log.csv.gz cannot be read"),
    ],
)
def test_what_is_compressed_otherwise_is_one_error(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"not compressed at all")
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name)


# JSON lines


def lines_file(folder, data: bytes):
    path = folder / "log.jsonl"
    path.write_bytes(data)
    return path


LINE = b'{"order_id":"a","at":"2026-01-01T12:00:00Z","shop":"007"}'


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + LINE + b"\n" + LINE,
        LINE + b"\r\n\r\n" + LINE + b"\r\n",
        LINE.replace(b",", b",\r") + b"\n \t\n" + LINE.replace(b":", b"\r:\r", 1),
        b"\n\n" + LINE + b"\n" + LINE + b"   ",
    ],
)
def test_marks_blank_lines_and_carriage_returns_mean_the_same_live_and_replayed(tmp_path, data):
    path = lines_file(tmp_path, data)
    assert_frame_equal(read(path), orders([{}, {}]))
    found, shelf = flow(path)
    assert_frame_equal(found, orders([{}, {}]))
    assert not shelf.letters


def test_errors_name_the_true_line(tmp_path):
    path = lines_file(tmp_path, b"\n" + LINE + b"\n\n\n[1]\n")
    with pytest.raises(SchemaError, match=r"log.jsonl · line 5: .*; 1 of 2 lines cannot be read"):
        read(path)
    [letter] = flow(path)[1].letters
    assert letter.offset == 4


def test_lines_of_utf_16_are_one_error(tmp_path):
    path = lines_file(tmp_path, LINE.decode().encode("utf-16"))
    for reads in (read, flow):
        with pytest.raises(SourceError, match=r"log.jsonl cannot be read: it is UTF-16 or UTF-32 text"):
            reads(path)


def test_an_unfinished_line_is_left_out_of_a_replay(tmp_path):
    path = lines_file(tmp_path, LINE + b"\n" + LINE[:-1])
    with capture_logs() as logs:
        assert read(path).height == 1
    assert {(line["event"], line["reason"]) for line in logs} == {("bad_rows_left_out", "unfinished_line")}


# Columns of types that Polars lacks

ZONE = timezone(timedelta(hours=5, minutes=30))
ODD = {
    "zone": pa.array([NOON.astimezone(ZONE)], pa.timestamp("us", tz="+05:30")),
    "zones in a list": pa.array([[NOON]], pa.list_(pa.timestamp("ms", tz="+05:30"))),
    "zones in a struct": pa.array([{"at": NOON}], pa.struct([("at", pa.timestamp("us", tz="+05:30"))])),
    "narrow decimal of 32 bytes": pa.array([Decimal("1.5")], pa.decimal256(20, 2)),
    "wide decimal": pa.array([Decimal("1.5")], pa.decimal256(60, 2)),
    "decimal": pa.array([Decimal("1.5")], pa.decimal128(10, 2)),
    "dictionary": pa.array(["x"]).dictionary_encode(),
    "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    "duration": pa.array([timedelta(1)]),
    "half float": pa.array([1.0], pa.float32()).cast(pa.float16()),
    "null": pa.nulls(1),
    "list view": pa.array([["x"]], pa.list_view(pa.string())),
    "list views in a struct": pa.array([{"x": ["y"]}], pa.struct([("x", pa.list_view(pa.string()))])),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])),
    "union": pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "extension": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"])),
}
NOT_IN_PARQUET = {"runs", "union", "interval"}


def arrow_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def arrow_file(table, path):
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


ARROW_WRITERS = {"parquet": pq.write_table, "arrow": arrow_file, "ipc": arrow_stream}


@pytest.mark.parametrize(
    ("suffix", "odd"),
    [each for each in product(ARROW_WRITERS, ODD) if not (each[0] == "parquet" and each[1] in NOT_IN_PARQUET)],
)
@pytest.mark.parametrize("name", ["shop", "store"])
def test_a_column_that_nobody_reads_costs_nothing(tmp_path, suffix, odd, name):
    """Whatever its type, and whether the others have their present name or an old one."""
    table = pa.table(
        {"odd": ODD[odd], "order_id": ["a"], "at": pa.array([NOON], pa.timestamp("us", "UTC")), name: ["007"]}
    )
    path = tmp_path / f"log.{suffix}"
    ARROW_WRITERS[suffix](table, path)
    assert_frame_equal(read(path), orders([{}]))
    assert_frame_equal(flow(path)[0], orders([{}]))


@pytest.mark.parametrize("suffix", ARROW_WRITERS)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_with_an_offset_for_a_zone_are_the_same_moments(tmp_path, suffix, unit):
    at = pa.array([NOON, NOON - timedelta(seconds=1)], pa.timestamp(unit, tz="+05:30"))
    path = tmp_path / f"log.{suffix}"
    ARROW_WRITERS[suffix](pa.table({"order_id": ["a", "b"], "at": at, "shop": ["007"] * 2}), path)
    assert read(path)["at"].to_list() == [NOON, NOON - timedelta(seconds=1)]
    assert flow(path)[0]["order_id"].to_list() == ["b", "a"]


def test_int96_columns_are_passed_over_and_read(tmp_path):
    table = pa.table({"order_id": ["a"], "at": pa.array([NOON], pa.timestamp("ns")), "shop": ["007"]})
    pq.write_table(table, tmp_path / "log.parquet", use_deprecated_int96_timestamps=True)
    assert_frame_equal(read(tmp_path / "log.parquet"), orders([{}]))


@pytest.mark.parametrize("suffix", ARROW_WRITERS)
def test_a_name_that_two_columns_have_is_refused_where_it_is_read(tmp_path, suffix):
    """Which of them is meant nobody knows; two columns that nobody reads cost nothing."""
    columns = [pa.array(["a"]), pa.array([NOON], pa.timestamp("us", "UTC")), pa.array(["007"]), *[pa.array(["b"])] * 2]
    path = tmp_path / f"log.{suffix}"
    ARROW_WRITERS[suffix](pa.table(columns, names=["order_id", "at", "shop", "odd", "odd"]), path)
    assert_frame_equal(read(path), orders([{}]))
    assert_frame_equal(flow(path)[0], orders([{}]))
    ARROW_WRITERS[suffix](pa.table(columns, names=["order_id", "at", "shop", "note", "note"]), path)
    for reader in (read, flow):
        with pytest.raises(SchemaError, match=rf"log.{suffix} · column note is there 2 times; rename all but one"):
            reader(path)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("note", pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])), "x"),
        ("note", pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"])), "{}"),
        ("price", pa.array([Decimal("1.5")], pa.decimal256(20, 2)), 1.5),
    ],
)
def test_declared_columns_of_newer_arrow_types(tmp_path, name, column, value):
    """In a file and in a frame alike."""
    at = pa.array([NOON], pa.timestamp("us", "UTC"))
    table = pa.table({"order_id": ["a"], "at": at, "shop": ["007"], name: column})
    arrow_file(table, tmp_path / "log.arrow")
    expected = orders([{name: value}])
    assert_frame_equal(read(tmp_path / "log.arrow"), expected)
    assert_frame_equal(conform(frame_of(table), SPEC), expected)


@pytest.mark.parametrize(("odd", "kind"), [("wide decimal", r"decimal256\(60, 2\)"), ("list view", "list_view<")])
def test_a_declared_column_that_cannot_be_read_is_named(tmp_path, odd, kind):
    table = pa.table({"order_id": ["a"], "at": pa.array([NOON], pa.timestamp("us")), "shop": ["s"], "price": ODD[odd]})
    for suffix in ("parquet", "arrow"):
        path = tmp_path / f"log.{suffix}"
        ARROW_WRITERS[suffix](table, path)
        with pytest.raises(SchemaError, match=rf"log.{suffix} · column price: type {kind}.* cannot be read"):
            read(path)


# Avro

AVRO = [("order_id", "string"), ("at", {"type": "long", "logicalType": "timestamp-millis"}), ("shop", "string")]


def avro_file(path, codec="null", more=(), values=None):
    fields = [{"name": name, "type": kind} for name, kind in [*AVRO, *more]]
    rows = [{"order_id": each, "at": NOON, "shop": "007", **(values or {})} for each in "abc"]
    out = io.BytesIO()
    schema = fastavro.parse_schema({"type": "record", "name": "Order", "fields": fields})
    fastavro.writer(out, schema, rows, codec=codec, sync_interval=1)
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
def test_avro_of_any_built_in_compression(tmp_path, codec):
    found = read(avro_file(tmp_path / "log.avro", codec))
    assert_frame_equal(found, orders([{"order_id": each} for each in "abc"]))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("null", None),
        ({"type": "array", "items": "null"}, [None]),
        ({"type": "fixed", "name": "F", "size": 12, "logicalType": "duration"}, b"0" * 12),
        ({"type": "map", "values": "long"}, {"k": 1}),
        ({"type": "string", "logicalType": "uuid"}, str(uuid.UUID(int=1))),
        (["null", {"type": "enum", "name": "E", "symbols": ["x"]}], "x"),
        ({"type": "long", "logicalType": "unknown"}, 1),
    ],
)
def test_avro_fields_that_nobody_reads(tmp_path, kind, value):
    for codec in ("null", "bzip2"):
        found = read(avro_file(tmp_path / "log.avro", codec, [("odd", kind)], {"odd": value}))
        assert_frame_equal(found, orders([{"order_id": each} for each in "abc"]))


def test_a_declared_avro_field_of_type_null_is_null(tmp_path):
    found = read(avro_file(tmp_path / "log.avro", more=[("note", "null")], values={"note": None}))
    assert found["note"].to_list() == [None] * 3


@pytest.mark.parametrize(("codec", "package"), [("zstandard", r"(backports\.zstd|zstandard)"), ("lz4", "lz4")])
def test_an_avro_compression_names_the_package_that_it_needs(tmp_path, codec, package):
    path = avro_file(tmp_path / "log.avro")
    path.write_bytes(
        path.read_bytes().replace(b"avro.codec\x08null", b"avro.codec" + bytes([2 * len(codec)]) + codec.encode())
    )
    with pytest.raises(SourceError, match=rf"{codec} codec is supported but you need to install .*{package}"):
        read(path)


# Folders that name columns

FOLDERS = {
    "shop": ("DE%20%2F%C3%BC", "DE /ü"),
    "count": ("7", 7),
    "price": ("0.5", 0.5),
    "paid": ("true", True),
    "due": ("2026-01-01 12%3A00%3A00", NOON),
    "note": ("__HIVE_DEFAULT_PARTITION__", None),
}
FOLDER_WRITERS = {
    "parquet": lambda frame, file: frame.write_parquet(file),
    "arrow": lambda frame, file: frame.write_ipc(file),
    "csv": lambda frame, file: frame.write_csv(file),
    "jsonl": lambda frame, file: file.write(
        "".join(json.dumps(row, default=iso) + "\n" for row in frame.to_dicts()).encode()
    ),
    "avro": lambda frame, file: fastavro.writer(file, fastavro.parse_schema(avro_schema(frame)), frame.to_dicts()),
}


def iso(value) -> str:
    return value.isoformat()


def avro_schema(frame):
    kinds = {pl.String: "string", pl.Int64: "long", pl.Float64: "double", pl.Boolean: "boolean"}
    kind = {"type": "long", "logicalType": "timestamp-micros"}
    fields = [{"name": n, "type": kinds.get(t.base_type(), kind)} for n, t in frame.schema.items()]
    return {"type": "record", "name": "Order", "fields": fields}


@pytest.mark.parametrize("suffix", FOLDER_WRITERS)
@pytest.mark.parametrize("column", FOLDERS)
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_folder_gives_a_column_that_its_files_lack(tmp_path, suffix, column, is_remote):
    """On this disk and elsewhere, by pattern and by path, live and in a replay."""
    folder, value = FOLDERS[column]
    wanted = orders([{"order_id": each, column: value} for each in "ab"])
    rows = wanted.select(name for name in ("order_id", "at", "shop") if name != column)
    root = f"memory://{uuid.uuid4().hex}" if is_remote else str(tmp_path)
    place = f"{root}/year=2026/{column}={folder}/part-0.{suffix}"
    with fsspec.open(place, "wb", auto_mkdir=True) as file:
        FOLDER_WRITERS[suffix](rows, file)
    for paths in (f"{root}/**/*.{suffix}", f"{root}/year=2026/*/*.{suffix}", place):
        assert_frame_equal(read(paths), wanted)
        found, shelf = flow(paths)
        assert_frame_equal(found, wanted)
        assert not shelf.letters


def test_folders_of_several_levels(tmp_path):
    folder = tmp_path / "unknown=x" / "shop=b" / "count=1" / "unknown=y"
    folder.mkdir(parents=True)
    orders([{}]).select("order_id", "at").write_parquet(folder / "part.parquet")
    assert_frame_equal(read(str(tmp_path / "**" / "*.parquet")), orders([{"shop": "b", "count": 1}]))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("second", ["shop=b", "shop=a", "store=b"])
def test_a_path_that_gives_one_column_twice_is_refused(tmp_path, suffix, second):
    folder = tmp_path / "shop=a" / second
    folder.mkdir(parents=True)
    with (folder / f"part.{suffix}").open("wb") as file:
        FOLDER_WRITERS[suffix](orders([{}]).select("order_id", "at"), file)
    with pytest.raises(SchemaError, match=rf"part.{suffix}.*folder {second} lies in another folder of the column shop"):
        read(str(tmp_path / "**" / f"*.{suffix}"))


@pytest.mark.parametrize(("column", "reason"), [("shop=DE", "missing"), ("count=1", "wrong_path")])
def test_an_explicit_null_in_a_line_says_something_else_than_its_folder(tmp_path, column, reason):
    """A line without the column takes the folder's value; null is a value of its own, as in a column of a Parquet."""
    (tmp_path / column).mkdir()
    name = column.partition("=")[0]
    [line] = codec_for(Order, "json").encode(orders([{"shop": "DE", "count": 1}]))
    fields = json.loads(line)
    without = {key: value for key, value in fields.items() if key != name}
    lines = (json.dumps(each) for each in (without, {**fields, name: None}))
    (tmp_path / column / "part.jsonl").write_text("\n".join(lines) + "\n")
    rows, shelf = flow(tmp_path / column / "part.jsonl")
    assert_frame_equal(rows, orders([{"shop": "DE", "count": 1}]))
    assert [letter.reason for letter in shelf.letters] == [reason]


def test_an_old_name_of_a_column_is_a_folders_too(tmp_path):
    (tmp_path / "store=x").mkdir()
    orders([{}]).select("order_id", "at").write_parquet(tmp_path / "store=x" / "part.parquet")
    assert_frame_equal(read(str(tmp_path / "*" / "*.parquet")), orders([{"shop": "x"}]))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_may_say_the_same_as_its_folder_and_nothing_else(tmp_path, suffix):
    folder = tmp_path / "shop=DE"
    folder.mkdir()
    for shop in ("DE", "FR"):
        rows = orders([{"shop": shop}]).select("order_id", "at", "shop")
        with (folder / f"{shop}.{suffix}").open("wb") as file:
            FOLDER_WRITERS[suffix](rows, file)
    assert read(folder / f"DE.{suffix}")["shop"].to_list() == ["DE"]
    assert flow(folder / f"DE.{suffix}")[0]["shop"].to_list() == ["DE"]
    with pytest.raises(SchemaError, match=r"FR.(parquet|jsonl).*'DE'"):
        read(folder / f"FR.{suffix}")
    if suffix == "jsonl":
        found, shelf = flow(folder / "FR.jsonl")
        assert (found.height, [letter.reason for letter in shelf.letters]) == (0, ["wrong_path"])


@pytest.mark.parametrize(
    ("column", "folder"),
    [
        ("count", "x"),
        ("count", "\u0661"),
        ("price", "x"),
        ("price", "1_0"),
        ("paid", "yes"),
        ("due", "x"),
        ("tags", "1"),
    ],
)
def test_a_folders_value_that_is_none_of_its_columns_type_is_named(tmp_path, column, folder):
    (tmp_path / f"{column}={folder}").mkdir()
    orders([{}]).drop(column).write_parquet(tmp_path / f"{column}={folder}" / "part.parquet")
    with pytest.raises(SchemaError, match=rf"part.parquet.*{column}={folder}"):
        read(str(tmp_path / "*" / "*.parquet"))


def test_a_required_column_that_is_null_by_its_folder_is_a_bad_row(tmp_path):
    folder = tmp_path / "shop=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir()
    orders([{}]).drop("shop").write_parquet(folder / "part.parquet")
    found, shelf = flow(str(folder / "*.parquet"))
    assert (found.height, [letter.reason for letter in shelf.letters]) == (0, ["missing"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + data, "bytes follow the end of its Arrow stream"),
        (lambda data: data + b"x", "1 bytes follow the end of its Arrow stream"),
        (lambda data: data[:-8], "its Arrow stream has no end: it was cut off"),
    ],
)
def test_an_arrow_stream_that_is_not_the_whole_file_is_refused(tmp_path, change, message):
    """Readers stop at the end of a stream, or of the bytes, without a word."""
    sink = io.BytesIO()
    orders([{}]).write_ipc_stream(sink)
    (tmp_path / "a.arrow").write_bytes(sink.getvalue())
    assert read(str(tmp_path / "a.arrow")).height == 1
    (tmp_path / "a.arrow").write_bytes(change(sink.getvalue()))
    with pytest.raises(SourceError, match=message):
        read(str(tmp_path / "a.arrow"))


def test_a_format_of_times_is_for_digits_too(tmp_path):
    """20260101 is a number as well, but the format says what it is."""
    (tmp_path / "a.csv").write_text("order_id,at,shop\na,20260102,north\n")
    [file] = find_files(str(tmp_path / "a.csv"), csv_time_format="%Y%m%d").files
    assert read_events(file, Order)["at"].to_list() == [datetime(2026, 1, 2, tzinfo=UTC)]


def test_seconds_in_a_csv_may_have_fractions(tmp_path):
    class Tick(Event, topic="ticks", key="door", time_unit="s"):
        event_time: datetime
        door: int

    (tmp_path / "a.csv").write_text("event_time,door\n1767225600.5,1\n1767225601,2\n")
    [file] = find_files(str(tmp_path / "a.csv")).files
    found = read_events(file, Tick)["event_time"].to_list()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert found == [start + timedelta(seconds=0.5), start + timedelta(seconds=1)]
