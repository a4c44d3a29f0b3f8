"""Files as a source: every row once, in a stable order, and one clear error for a file that cannot be read."""

import io
import json
import os
from datetime import datetime

import fastavro
import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import AliasChoices

from headrace.errors import OffsetLostError, SchemaError, SourceError
from headrace.schemas import Event, Field, spec_of
from headrace.streams.file_source import FileSource
from headrace.streams.files.lines import row_numbers
from headrace.streams.urls import source_of_url
from tests.turnstiles import Passage, drain, passages


def plain(partition: str) -> str:
    """A partition's name without that of its content."""
    return partition.partition("@")[0]


def write_avro(frame: pl.DataFrame, path) -> None:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(spec_of(Passage).avro), frame.to_dicts())
    path.write_bytes(out.getvalue())


WRITERS = {
    "parquet": lambda frame, path: frame.write_parquet(path),
    "arrow": lambda frame, path: frame.write_ipc(path),
    "ipc": lambda frame, path: frame.write_ipc_stream(path),
    "avro": write_avro,
    "csv": lambda frame, path: frame.write_csv(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_each_kind_comes_whole_and_in_event_time_order(tmp_path, suffix):
    frame = passages(1_000)
    path = tmp_path / f"log.{suffix}"
    WRITERS[suffix](frame.with_columns(extra=pl.lit(1)) if suffix != "avro" else frame, path)
    batches = drain(FileSource(path, Passage, rows_max=300))
    assert [(plain(batch.partition), int(batch.offsets[0]), batch.next_offset, batch.ended) for batch in batches] == [
        (f"passages/log.{suffix}", 0, 300, False),
        (f"passages/log.{suffix}", 300, 600, False),
        (f"passages/log.{suffix}", 600, 900, False),
        (f"passages/log.{suffix}", 900, 1_000, True),
    ]
    assert_frame_equal(pl.concat([batch.frame for batch in batches]), frame.sort("at", maintain_order=True))


def test_unsorted_keeps_the_file_order(tmp_path):
    frame = passages(100).reverse()
    frame.write_parquet(tmp_path / "log.parquet")
    [batch] = drain(FileSource(tmp_path / "log.parquet", Passage, sort=False))
    assert_frame_equal(batch.frame, frame)


@given(group_rows=st.integers(1, 120), rows_max=st.integers(1, 120), begin=st.integers(0, 100), is_sorted=st.booleans())
@settings(max_examples=60)
def test_row_groups_of_any_size_come_whole_from_any_row_on(tmp_path_factory, group_rows, rows_max, begin, is_sorted):
    frame = passages(100).sort("at", maintain_order=True)
    path = tmp_path_factory.mktemp("files") / "log.parquet"
    (frame if is_sorted else frame.reverse()).write_parquet(path, row_group_size=group_rows)
    source = FileSource(path, Passage, rows_max=rows_max)
    source.seek({source.partitions()[0]: begin})
    batches = drain(source)
    assert_frame_equal(
        pl.concat([batch.frame for batch in batches]).sort("at", "passage_id"), frame[begin:].sort("at", "passage_id")
    )
    assert [offset for batch in batches for offset in batch.offsets.tolist()] == list(range(begin, 100))
    assert all(len(batch.offsets) <= rows_max for batch in batches)
    assert [batch.ended for batch in batches] == [False] * (len(batches) - 1) + [True]


def line_numbers(batch) -> list[int]:
    return row_numbers(batch.partition, batch.offsets).tolist()


def test_json_lines_are_payloads_with_their_line_numbers(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n\nnot json\n{"b": 2}')
    [batch] = drain(FileSource(path, Passage))
    assert batch.payloads == [b'{"a": 1}', b"not json", b'{"b": 2}']
    assert batch.codec == "json"
    assert line_numbers(batch) == [0, 2, 3]


def test_seek_and_a_second_run_take_up_where_the_offsets_say(tmp_path):
    frame = passages(100).sort("at", maintain_order=True)
    frame.write_parquet(tmp_path / "log.parquet")
    source = FileSource(tmp_path / "log.parquet", Passage)
    [name] = source.partitions()
    source.seek({name: 60})
    [batch] = drain(source)
    assert_frame_equal(batch.frame, frame[60:])
    source.seek({name: 100})
    assert not source.exhausted
    [batch] = drain(source)
    assert (batch.next_offset, batch.frame.height, batch.ended) == (100, 0, True)


def test_a_glob_names_files_below_its_fixed_part_whatever_the_working_folder(tmp_path, monkeypatch):
    for day in ("b/2", "a/1"):
        (tmp_path / "logs" / day).mkdir(parents=True)
        passages(10).write_parquet(tmp_path / "logs" / day / "log.parquet")
    wanted = ["passages/a/1/log.parquet", "passages/b/2/log.parquet"]
    found = FileSource(str(tmp_path / "logs" / "**" / "*.parquet"), Passage).partitions()
    assert [plain(name) for name in found] == wanted
    monkeypatch.chdir(tmp_path)
    assert FileSource("logs/**/*.parquet", Passage).partitions() == found


def test_files_of_another_filesystem_are_partitions_by_the_same_names(tmp_path):
    frame = passages(40).sort("at", maintain_order=True)
    for name, part in (("a/1", frame[:25]), ("b/2", frame[25:])):
        with fsspec.open(f"memory://{tmp_path.name}/{name}/log.parquet", "wb") as file:
            part.write_parquet(file)
    source = source_of_url(f"memory://{tmp_path.name}/**/*.parquet", [Passage])
    assert [plain(name) for name in source.partitions()] == ["passages/a/1/log.parquet", "passages/b/2/log.parquet"]
    assert_frame_equal(pl.concat([batch.frame for batch in drain(source)]), frame)


def test_shares_are_disjoint_and_whole(tmp_path):
    for name in "abc":
        passages(10, seed=ord(name)).write_parquet(tmp_path / f"{name}.parquet")
    source = FileSource(tmp_path / "*.parquet", Passage)
    names = [[plain(batch.partition) for batch in drain(source.share(index, 2))] for index in range(2)]
    assert names == [["passages/a.parquet", "passages/c.parquet"], ["passages/b.parquet"]]


def missing(folder):
    return folder / "none.parquet", "none.parquet does not exist"


def no_match(folder):
    return folder / "*.parquet", r"no file matches .*\*.parquet"


def a_folder(folder):
    return folder, "is a folder; add a pattern"


def a_pipe(folder):
    os.mkfifo(folder / "e.jsonl")
    return folder / "e.jsonl", "e.jsonl is a pipe or device; write what it gives to a file first"


def no_bytes(folder):
    (folder / "e.parquet").write_bytes(b"")
    return folder / "e.parquet", "e.parquet is empty"


def no_rows(folder):
    passages(0).write_parquet(folder / "e.parquet")
    return folder / "e.parquet", "e.parquet has no rows"


def no_lines(folder):
    (folder / "e.jsonl").write_text("\n\n")
    return folder / "e.jsonl", "e.jsonl has no rows"


def not_parquet(folder):
    (folder / "bad.parquet").write_bytes(b"this is no parquet file")
    return folder / "bad.parquet", "bad.parquet cannot be read: "


def no_reader(folder):
    (folder / "log.xml").write_text("<a/>")
    return folder / "log.xml", r"no reader for '.xml'; use one of .parquet, "


def a_bare_scheme(_folder):
    return "memory://", r"memory:// is a folder; add a pattern, as in memory://\*.parquet"


def a_long_name(folder):
    return folder / ("x" * 300 + ".parquet"), "xx.parquet cannot be read: File name too long"


@pytest.mark.parametrize(
    "case",
    [
        missing,
        no_match,
        a_folder,
        a_bare_scheme,
        a_long_name,
        a_pipe,
        no_bytes,
        no_rows,
        no_lines,
        not_parquet,
        no_reader,
    ],
    ids=lambda case: case.__name__,
)
def test_a_file_that_cannot_be_used_is_one_error_that_names_it(tmp_path, case):
    path, message = case(tmp_path)
    with pytest.raises(SourceError, match=message):
        drain(FileSource(path, Passage))


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        passages(1).write_parquet(tmp_path / folder / "log.parquet")
    with pytest.raises(SourceError, match="would share the partition name 'passages/log.parquet@"):
        FileSource([tmp_path / "a" / "log.parquet", tmp_path / "b" / "log.parquet"], Passage).partitions()


def test_a_column_of_another_type_names_file_and_column(tmp_path):
    passages(5).with_columns(pl.lit("x").alias("door")).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(SchemaError, match=r"log.parquet: .*door"):
        drain(FileSource(tmp_path / "log.parquet", Passage))


def test_a_column_that_is_lacking_is_told_with_all_that_are_there(tmp_path):
    passages(5).rename({"door": "gate"}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(SchemaError, match=r"Passage.door: no such column, .* there are passage_id, at, gate, way, sec"):
        drain(FileSource(tmp_path / "log.parquet", Passage))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_a_file_with_a_fields_old_name_is_read(tmp_path, suffix):
    class Step(Event, topic="steps", key="gate", time="at"):
        at: datetime
        gate: int = Field(validation_alias=AliasChoices("gate", "door"))

    frame = passages(5).sort("at")
    WRITERS[suffix](frame, tmp_path / f"log.{suffix}")
    [batch] = drain(FileSource(tmp_path / f"log.{suffix}", Step))
    assert_frame_equal(batch.frame, frame.select("at", gate="door"))


def test_lines_that_became_fewer_are_noticed(tmp_path):
    frame = passages(6)
    frame.write_ndjson(tmp_path / "log.jsonl")
    [batch] = drain(FileSource(tmp_path / "log.jsonl", Passage))
    frame[:5].write_ndjson(tmp_path / "log.jsonl")
    source = FileSource(tmp_path / "log.jsonl", Passage)
    source.seek({batch.partition: batch.next_offset})
    with pytest.raises(OffsetLostError, match="has 5 lines, but 6 were read"):
        source.poll()


def test_lines_may_be_added_at_the_end_of_a_file(tmp_path):
    frame, path = passages(9), tmp_path / "log.jsonl"
    frame[:5].write_ndjson(path)
    [batch] = drain(FileSource(path, Passage))
    frame.write_ndjson(path)
    source = FileSource(path, Passage)
    source.seek({batch.partition: batch.next_offset})
    [batch] = drain(source)
    assert line_numbers(batch) == [5, 6, 7, 8]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_sorted_file_that_changed_since_it_was_read_is_refused(tmp_path, suffix):
    """Older rows are added: by number, some of them are below the offset, and some that were read are above it."""
    frame, path = passages(150).sort("at"), tmp_path / f"log.{suffix}"
    WRITERS[suffix](frame[50:], path)
    [batch] = drain(FileSource(path, Passage))
    same = FileSource(str(tmp_path / "*"), Passage)
    same.seek({batch.partition: batch.next_offset})
    assert sum(len(found.offsets) for found in drain(same)) == 0
    WRITERS[suffix](frame, path)
    for known in (batch.partition, plain(batch.partition)):
        with pytest.raises(
            SourceError, match=rf"log.{suffix} has changed since 100 of its rows were read: .* new file"
        ):
            FileSource(path, Passage).seek({known: batch.next_offset})


def test_empty_files_among_others_are_passed_over(tmp_path):
    passages(7).write_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"")
    passages(0).write_csv(tmp_path / "c.csv")
    passages(0).write_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").write_text("")
    passages(8).write_parquet(tmp_path / "f.parquet")
    batches = drain(FileSource(str(tmp_path / "*.*"), Passage))
    assert [(plain(batch.partition)[9:], len(batch.offsets), batch.ended) for batch in batches] == [
        ("a.csv", 7, True),
        ("c.csv", 0, True),
        ("d.parquet", 0, True),
        ("f.parquet", 8, True),
    ]


def test_csv_text_that_looks_like_numbers_stays_text(tmp_path):
    frame = passages(3).with_columns(passage_id=pl.Series(["001", "002", "003"]))
    frame.write_csv(tmp_path / "log.csv")
    [batch] = drain(FileSource(tmp_path / "log.csv", Passage))
    assert sorted(batch.frame["passage_id"]) == ["001", "002", "003"]
    assert json.loads(batch.frame.select("door").write_json())
