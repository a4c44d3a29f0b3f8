"""Spines in files of any format, and files that differ: one table, or an error that names the file and the fix."""

import json
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import SchemaError, SourceError, SpineError
from headrace.features import Count, FeatureView
from headrace.history.export import replay_to_file
from headrace.history.replay import replay
from headrace.schemas import Event, spec_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Call(Event, topic="calls", key="line", time="at", id="call_id"):
    """A telephone call."""

    call_id: str
    at: datetime
    line: str


class Calls(FeatureView, source=Call, entity="line"):
    """Calls of a line."""

    calls = Count(windows="lifetime")


LOG = pl.DataFrame(
    {
        "call_id": [str(number) for number in range(8)],
        "at": [NOON + timedelta(minutes=number) for number in range(8)],
        "line": ["007", "12"] * 4,
    }
)
ROWS = pl.DataFrame({"line": ["007", "12", "7"], "event_time": [NOON + timedelta(minutes=m) for m in (1, 4, 9)]})
CALLS = [1, 2, 0]


def calls(path, **options):
    return replay(Calls, LOG, path, **options)["calls.calls_lifetime"].to_list()


def write(folder, name, frame):
    path = folder / name
    writers = {
        ".parquet": frame.write_parquet,
        ".arrow": frame.write_ipc,
        ".csv": frame.write_csv,
        ".jsonl": lambda path: path.write_text(
            "".join(json.dumps(row, default=str) + "\n" for row in frame.to_dicts())
        ),
    }
    writers[path.suffix](path)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "jsonl"])
def test_keys_and_times_are_as_declared_in_every_format(tmp_path, suffix):
    """A text key of digits keeps its zeros, times as text are read, other columns are carried."""
    path = write(
        tmp_path, f"rows.{suffix}", ROWS.with_columns(zip=pl.Series(["01234", "1", None]), n=pl.Series([1, 2, 3]))
    )
    found = replay(Calls, LOG, path)
    assert found["calls.calls_lifetime"].to_list() == CALLS
    assert found.select("zip", "n").rows() == [("01234", 1), ("1", 2), (None, 3)]
    assert found.schema["event_time"] == pl.Datetime("us", "UTC")
    out = tmp_path / "out.parquet"
    assert replay_to_file([Calls], write(tmp_path, "log.parquet", LOG), path, out) == 3
    assert_frame_equal(pl.read_parquet(out), found)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_with_other_columns_units_and_zones_are_one_spine(tmp_path, suffix):
    first = ROWS[:1].select("line", "event_time")
    second = (
        ROWS[1:2]
        .select("event_time", "line", label=pl.lit(5))
        .with_columns(pl.col("event_time").dt.convert_time_zone("Europe/Paris").dt.cast_time_unit("ms"))
    )
    third = ROWS[2:].select(pl.col("event_time").dt.replace_time_zone(None), "line", note=pl.lit("x"))
    for number, frame in enumerate([first, second, third]):
        write(tmp_path, f"{number}.{suffix}", frame)
    found = replay(Calls, LOG, str(tmp_path / f"*.{suffix}"))
    assert found.columns[:4] == ["line", "event_time", "label", "note"]
    assert found["calls.calls_lifetime"].to_list() == CALLS
    assert found["event_time"].to_list() == ROWS["event_time"].to_list()
    assert found.select("label", "note").rows() == [(None, None), (5, None), (None, "x")]
    out = tmp_path / "out.jsonl"
    log = write(tmp_path, "log.arrow", LOG)
    assert replay_to_file([Calls], log, str(tmp_path / f"*.{suffix}"), out) == 3
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == [None, 5, None]


def test_a_column_of_types_that_do_not_fit_names_both_files(tmp_path):
    write(tmp_path, "a.parquet", ROWS[:1].with_columns(label=pl.lit(1)))
    write(tmp_path, "b.parquet", ROWS[1:].with_columns(label=pl.lit("x")))
    with pytest.raises(SpineError, match=r"column label is Int\d+ in file .*a.parquet and String in file .*b.parquet"):
        calls(str(tmp_path / "*.parquet"))


def test_a_zone_that_is_an_offset_and_columns_that_polars_lacks(tmp_path):
    zone = timezone(timedelta(hours=5, minutes=30))
    times = pa.array(ROWS["event_time"].to_list(), pa.timestamp("us", tz="+05:30"))
    table = pa.table({"line": ROWS["line"].to_list(), "event_time": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert calls(tmp_path / "rows.parquet") == CALLS
    assert calls(table) == CALLS
    rows = [{"line": line, "event_time": at.astimezone(zone)} for line, at in ROWS.iter_rows()]
    assert calls(rows) == CALLS


def test_folders_give_keys_that_a_spine_lacks(tmp_path):
    for line in ("007", "12"):
        (tmp_path / f"line={line}").mkdir()
        write(tmp_path, f"line={line}/rows.parquet", ROWS.filter(pl.col("line") == line).drop("line"))
    assert calls(str(tmp_path / "*" / "*.parquet")) == CALLS[:2]


UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("suffix", ["frame", "parquet", "csv", "jsonl"])
def test_bare_numbers_need_a_unit(tmp_path, unit, suffix):
    numbers = ROWS.with_columns(pl.col("event_time").dt.epoch("s") * UNITS[unit])
    table = numbers if suffix == "frame" else write(tmp_path, f"rows.{suffix}", numbers)
    assert calls(table, time_unit=unit) == CALLS
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    with pytest.raises(
        SpineError, match=rf"numbers without a unit; by their size they are {names[unit]}. Say which.* {unit},"
    ):
        calls(table)
    other = {"s": "us", "ms": "s", "us": "ns", "ns": "us"}[unit]
    with pytest.raises(SpineError, match=r"no time of the years 1971 to 2969 in"):
        calls(table, time_unit=other)


def test_a_unit_that_is_none_is_refused():
    with pytest.raises(SpineError, match=r"time_unit 'sec': use one of s, ms, us, ns"):
        calls(ROWS, time_unit="sec")


def test_nanoseconds_are_kept_or_refused():
    exact = ROWS.with_columns(pl.col("event_time").dt.cast_time_unit("ns"))
    assert calls(exact) == CALLS
    between = exact.with_columns((pl.col("event_time").to_physical() + 500).cast(pl.Datetime("ns", "UTC")))
    with pytest.raises(SpineError, match=r"has times between two microseconds"):
        calls(between)
    with pytest.raises(SpineError, match=r"has times between two microseconds"):
        calls(between.with_columns(pl.col("event_time").to_physical()), time_unit="ns")


def test_csv_times_in_two_orders_need_a_format(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("line,event_time\n007,01/02/2026 12:00\n12,02/02/2026 12:00\n")
    log = tmp_path / "log.csv"
    log.write_text("call_id,at,line\na,01/02/2026 11:00,007\nb,02/01/2026 11:00,12\n")
    with pytest.raises(SchemaError, match=r"rows.csv · column event_time: '01/02/2026 12:00' can be read as .* and as"):
        replay(Calls, LOG, rows)
    with pytest.raises(SchemaError, match=r"log.csv · column at: '01/02/2026 11:00' can be read as"):
        replay(Calls, log, ROWS)
    for order, wanted in (("%d/%m/%Y %H:%M", [1, 1]), ("%m/%d/%Y %H:%M", [1, 1])):
        found = replay(Calls, log, rows, csv_time_format=order)
        assert found["calls.calls_lifetime"].to_list() == wanted
    out = tmp_path / "out.csv"
    assert replay_to_file([Calls], log, rows, out, csv_time_format="%d/%m/%Y %H:%M") == 2
    assert "2026-02-01T12:00:00.000000Z" in out.read_text()


def no_file(folder):
    return folder / "none.csv", SourceError, "none.csv does not exist"


def no_table(folder):
    return 5, SchemaError, "spine: a int is no table; give a frame"


def half_a_line(folder):
    (folder / "rows.jsonl").write_text('{"line": "007", "event_time": "2026-01-01T00:00:00Z"}\n{"line": "00')
    return folder / "rows.jsonl", SourceError, "rows.jsonl cannot be read"


def short_row(folder):
    (folder / "rows.csv").write_text("line,event_time\n007,2026-01-01\n\n12\n")
    return folder / "rows.csv", SourceError, "rows.csv cannot be read: line 4 has 1 values and the header 2"


@pytest.mark.parametrize("case", [no_file, no_table, half_a_line, short_row], ids=lambda case: case.__name__)
def test_what_is_no_spine_is_one_error(tmp_path, case):
    spine, error, message = case(tmp_path)
    with pytest.raises(error, match=message):
        calls(spine)


@pytest.mark.parametrize(
    ("unit", "number", "hint"),
    [("ms", 1_767_312_000_000_000, "microseconds"), ("ms", 10**18, "nanoseconds"), ("us", 10**18, "nanoseconds")],
)
def test_datetimes_that_are_numbers_of_another_unit_are_refused(unit, number, hint):
    """A column that was cast from numbers is of years that nobody means."""
    times = pl.Series("event_time", [number]).cast(pl.Datetime(unit))
    with pytest.raises(SpineError, match=f"no time of the years 1 to 9999; by its size it is {hint}"):
        replay(Calls, pl.DataFrame(schema=spec_of(Call).polars), pl.DataFrame({"line": ["1"], "event_time": times}))


def test_digits_of_a_csv_are_read_by_the_format_that_is_given(tmp_path):
    (tmp_path / "rows.csv").write_text("line,event_time\n1,20260102\n")
    found = replay(Calls, pl.DataFrame(schema=spec_of(Call).polars), tmp_path / "rows.csv", csv_time_format="%Y%m%d")
    assert found["event_time"].to_list() == [datetime(2026, 1, 2, tzinfo=UTC)]
