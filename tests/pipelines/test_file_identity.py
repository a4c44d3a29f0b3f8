"""A file is known again by what it holds, whatever it is called and however it is reached: each row counts once.

run 1   logs/01/part-0.jsonl   |a b c|
run 2   logs/02/part-0.jsonl   |d e f g|        another file of the same name: all of it counts
run 2   logs/01/part-0.jsonl   |a b c|h i|      the same file, which has grown: what is new counts
run 2   logs/01/part-0.jsonl   |a b x|h i|      no longer what was read: refused
"""

import gzip
import os
import random
import uuid
from pathlib import Path

import fsspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import OffsetLostError, SourceError
from headrace.features import Count, FeatureView, LastN, OnlineStore
from headrace.history.replay import replay
from headrace.pipelines import Archiver, EventBatch, Intake, Materializer, loop, run_flow
from headrace.pipelines.flow import materialize_flow
from headrace.schemas import codec_for
from headrace.streams.file_source import FileSource
from headrace.streams.files.finder import find_files
from headrace.streams.files.lines import row_numbers
from headrace.streams.urls import sources_of_urls
from tests.logs import capture_logs
from tests.turnstiles import START_US, Passage, Shelf, drain, passages

LINES = codec_for(Passage, "json").encode(passages(60).sort("at"))


class Doors(FeatureView, source=Passage, entity="door"):
    """How often each door was used, and by whom last."""

    passages = Count(windows="lifetime")
    last = LastN("passage_id", n=3)


class Ways(FeatureView, source=Passage, entity="way"):
    """How often doors were used in each direction."""

    passages = Count(windows="lifetime")


def write(path: Path, lines, end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]) + lines[-1] + end)
    return path


def feed(store: OnlineStore, *urls, views=(Doors,), runner="loop") -> Shelf:
    """Bring files into the store, as `headrace materialize` does; returns what was put aside."""
    shelf = Shelf()
    source = sources_of_urls([str(url) for url in urls], [Passage])
    if runner == "loop":
        loop.run(source, Intake([Passage], dead_letters=shelf), [Materializer(views, store, dead_letters=shelf)])
    else:
        run_flow(materialize_flow(source, views, store, {"dead_letters": shelf}), runner="bytewax", workers=2)
    return shelf


def counted(store: OnlineStore, view=Doors) -> int:
    keys = {"door": list(range(50))} if view is Doors else {"way": ["in", "out"]}
    return store.read(view, keys, START_US + 10**13)["passages_lifetime"].fill_null(0).sum()


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, 4, uuid.uuid4().hex[:8]) as opened:
        yield opened


@pytest.mark.parametrize("runner", ["loop", "bytewax"])
def test_files_of_one_name_in_two_folders_both_count(tmp_path, store, runner):
    for day, lines in (("01", LINES[:3]), ("02", LINES[3:7])):
        write(tmp_path / day / "part-0.jsonl", lines)
        feed(store, tmp_path / day / "*.jsonl", runner=runner)
    assert counted(store) == 7
    feed(store, tmp_path / "*" / "part-0.jsonl", runner=runner)
    assert counted(store) == 7


def test_sorted_files_of_one_name_are_told_apart_or_refused(tmp_path, store):
    frame = passages(7)
    for day, part in (("01", frame[:3]), ("02", frame[3:])):
        (tmp_path / day).mkdir()
        part.write_parquet(tmp_path / day / "part-0.parquet")
    feed(store, tmp_path / "01" / "*.parquet")
    with pytest.raises(SourceError, match=r"If it is another file of the same name, reach both by one pattern"):
        feed(store, tmp_path / "02" / "*.parquet")
    feed(store, tmp_path / "*" / "part-0.parquet")
    assert counted(store) == 7


def test_byte_equal_copies_are_two_files(tmp_path, store):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", LINES[:5])
    feed(store, tmp_path / "*.jsonl")
    assert counted(store) == 10


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_one_file_reached_in_several_ways_counts_once(tmp_path, store, monkeypatch, suffix):
    """In one run and from run to run, by the store and by a replay."""
    monkeypatch.chdir(tmp_path)
    frame = passages(20).sort("at")
    path = tmp_path / "logs" / "01" / f"a.{suffix}"
    path.parent.mkdir(parents=True)
    if suffix == "jsonl":
        write(path, LINES[:20])
    else:
        {"csv": frame.write_csv, "parquet": frame.write_parquet}[suffix](path)
    (tmp_path / "link").symlink_to(path.parent)
    (tmp_path / f"other.{suffix}").symlink_to(path)
    ways = [
        str(path),
        f"logs/01/*.{suffix}",
        f"logs/*/a.{suffix}",
        f"./logs/../logs/01/a.{suffix}",
        f"**/*.{suffix}",
        f"link/*.{suffix}",
        f"other.{suffix}",
        f"file://{path}",
    ]
    spine = pl.DataFrame({"way": ["in", "out"]}).with_columns(event_time=pl.lit(frame["at"].max()).dt.offset_by("1d"))
    assert replay(Ways, ways, spine)["ways.passages_lifetime"].sum() == 20
    feed(store, *ways)
    assert counted(store) == 20
    for way in random.Random(1).sample(ways, len(ways)):
        feed(store, way)
        assert counted(store) == 20, way


def test_a_file_that_was_begun_anew_counts_and_is_said(tmp_path, store):
    """Truncated or rotated, and grown past its old end."""
    path = write(tmp_path / "live.jsonl", LINES[:5])
    feed(store, path)
    write(path, LINES[10:30])
    with capture_logs() as logs:
        feed(store, path)
    assert counted(store) == 25
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["file_begun_anew"]
    path.unlink()
    write(path, LINES[40:42])
    feed(store, path)
    assert counted(store) == 27


@pytest.mark.parametrize("runner", ["loop", "bytewax"])
def test_rotated_lines_count_once(tmp_path, store, runner):
    """logrotate: live.jsonl becomes live-1.jsonl, a new live.jsonl begins; what both gained meanwhile counts.

    run 1   live.jsonl |a b c d e|
    run 2   live-1.jsonl |a b c d e|f g|   live.jsonl |h i|
    run 3   live-2.jsonl |a b c d e f g|   live-1.jsonl |h i|j|   live.jsonl |k|
    """
    live, older, oldest = (tmp_path / name for name in ("live.jsonl", "live-1.jsonl", "live-2.jsonl"))
    write(live, LINES[:5])
    feed(store, tmp_path / "*.jsonl", runner=runner)
    live.rename(older)
    write(older, LINES[:7])
    write(live, LINES[7:9])
    with capture_logs() as logs:
        feed(store, tmp_path / "*.jsonl", runner=runner)
    assert counted(store) == 9
    assert {line["event"] for line in logs if line["log_level"] == "warning"} == {"file_renamed"}
    older.rename(oldest)
    live.rename(older)
    write(older, LINES[7:10])
    write(live, LINES[10:11])
    for _ in range(2):
        feed(store, tmp_path / "*.jsonl", runner=runner)
        assert counted(store) == 11


def test_a_copy_beside_the_file_that_was_read_counts(tmp_path, store):
    """Two files of equal content are two files, also when the second one comes later."""
    write(tmp_path / "a.jsonl", LINES[:5])
    feed(store, tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", LINES[:5])
    feed(store, tmp_path / "b.jsonl")
    assert counted(store) == 10


def test_a_file_of_another_name_that_only_begins_alike_counts(tmp_path, store):
    write(tmp_path / "a.jsonl", LINES[:5])
    feed(store, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path / "b.jsonl", [LINES[0], *LINES[10:13]])
    feed(store, tmp_path / "b.jsonl")
    assert counted(store) == 9


@pytest.mark.parametrize("runner", ["loop", "bytewax"])
def test_lines_that_changed_before_the_end_are_refused(tmp_path, store, runner):
    path = write(tmp_path / "live.jsonl", LINES[:5])
    feed(store, path, runner=runner)
    write(path, [*LINES[:2], LINES[30], *LINES[3:20]])
    with pytest.raises(SourceError, match=r"of its first 5 lines, which were read before, some have changed since"):
        feed(store, path, runner=runner)
    write(path, LINES[:4])
    with pytest.raises(OffsetLostError, match=r"has 4 lines, but 5 were read from it before"):
        feed(store, path, runner=runner)
    assert counted(store) == 5
    write(path, LINES[:9])
    feed(store, path, runner=runner)
    assert counted(store) == 9


def test_what_any_shard_has_read_is_compared(tmp_path, store):
    """A crash between two flushes leaves shards at different lines: the one that is furthest saw line 8."""
    path = write(tmp_path / "live.jsonl", LINES[:4])
    feed(store, path)
    ahead = FileSource(path, Passage)
    write(path, LINES[:10])
    [name] = ahead.partitions()
    [batch] = drain(ahead)
    step = Materializer([Doors], store, shards=[1, 2])
    step.apply(Intake([Passage], dead_letters=Shelf()).decode(batch))
    step.flush()
    [reader] = step.positions().readers
    assert {row_numbers(name, at) for at in reader.reached[name]} == {10}
    write(path, [*LINES[:8], LINES[50], LINES[9]])
    with pytest.raises(SourceError, match=r"of its first 10 lines"):
        feed(store, path)
    write(path, LINES[:12])
    feed(store, path)
    assert counted(store) == 12


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_that_grows_byte_by_byte_gives_each_line_once(tmp_path, data):
    """Wherever it is cut when it is read: a last line is read when it is whole, and put aside until then."""
    lines = data.draw(st.lists(st.sampled_from([*LINES[:9], b"", b"no event", b'{"door": "}"}', b" \r"]), max_size=9))
    whole = b"\n".join([LINES[9], *lines]) + data.draw(st.sampled_from([b"", b"\n", b"\r\n"]))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(whole)), max_size=5)))
    path, positions, read = tmp_path / f"{uuid.uuid4().hex}.jsonl", {}, []
    for cut in [*cuts, len(whole)]:
        path.write_bytes(whole[:cut])
        source = FileSource(path, Passage, rows_max=2)
        source.refuse_changed([{name: [offset] for name, offset in positions.items()}])
        source.seek(positions)
        for batch in drain(source):
            read += [payload.strip() for payload in batch.payloads]
            positions[batch.partition] = batch.next_offset
            if batch.ended:
                assert batch.unfinished is None or whole[:cut].endswith(batch.unfinished)
    wanted = [line.strip() for line in whole.split(b"\n") if line.strip()]
    if whole.rpartition(b"\n")[2].strip() == b"no event":
        wanted.pop()  # nobody can say that it is whole
    assert read == wanted


def test_an_unfinished_line_is_a_dead_letter_until_it_is_whole(tmp_path, store):
    path = tmp_path / "live.jsonl"
    path.write_bytes(b"\n" + LINES[0] + b"\n" + LINES[1][:30])
    for _ in range(2):
        [letter] = feed(store, path).letters
        assert (letter.reason, letter.offset, letter.payload) == ("unfinished_line", 2, LINES[1][:30])
        assert "line 3 has no end" in letter.detail
        assert counted(store) == 1
    path.write_bytes(b"\n" + LINES[0] + b"\n" + LINES[1])
    assert not feed(store, path).letters
    assert counted(store) == 2
    write(path, [b"", *LINES[:4]])
    feed(store, path)
    assert counted(store) == 4


def test_a_file_with_nothing_but_an_unfinished_line_is_no_error(tmp_path, store):
    path = tmp_path / "live.jsonl"
    path.write_bytes(LINES[0][:20])
    assert len(feed(store, path).letters) == 1
    write(path, LINES[:2])
    with capture_logs() as logs:
        feed(store, path)
    assert counted(store) == 2
    assert not [line for line in logs if line["event"] == "file_begun_anew"]


def test_a_replay_leaves_an_unfinished_line_out_as_the_flow_does(tmp_path):
    path = write(tmp_path / "live.jsonl", [*LINES[:3], LINES[3][:40]], end=b"")
    spine = pl.DataFrame({"way": ["in", "out"]}).with_columns(event_time=pl.lit(passages(60)["at"].max()))
    with capture_logs() as logs:
        found = replay(Ways, path, spine)
    assert found["ways.passages_lifetime"].sum() == 3
    assert [(line["event"], line["rows"], line["reason"]) for line in logs] == [
        ("bad_rows_left_out", 1, "unfinished_line")
    ]


def test_compressed_lines_grow_by_members(tmp_path, store):
    path = tmp_path / "live.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(LINES[:4]) + b"\n"))
    feed(store, path)
    path.write_bytes(path.read_bytes() + gzip.compress(b"\n".join(LINES[4:9])))
    feed(store, path)
    assert counted(store) == 9
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"live.jsonl.gz cannot be read"):
        feed(store, path)


def test_files_elsewhere_are_known_again(store):
    place = f"memory://{uuid.uuid4().hex}"
    for name, lines in (("01/a", LINES[:3]), ("02/a", LINES[3:7])):
        with fsspec.open(f"{place}/{name}.jsonl", "wb") as file:
            file.write(b"\n".join(lines))
    feed(store, f"{place}/01/*.jsonl")
    feed(store, f"{place}/02/a.jsonl", f"{place}/*/a.jsonl")
    assert counted(store) == 7
    with fsspec.open(f"{place}/02/a.jsonl", "wb") as file:
        file.write(b"\n".join([*LINES[3:6], LINES[40], LINES[41]]))
    with pytest.raises(SourceError, match=r"02/a.jsonl begins as it did"):
        feed(store, f"{place}/*/a.jsonl")


def test_what_was_read_by_name_alone_is_refused(tmp_path, store):
    """As an earlier version wrote it: lines counted, and the name without what the file holds."""
    path = write(tmp_path / "live.jsonl", LINES[:5])
    step = Materializer([Doors], store)
    frame = codec_for(Passage, "json").decode(LINES[:3]).frame
    offsets = frame.select(pl.int_range(3)).to_series().to_numpy()
    step.apply(EventBatch(Passage, "passages/live.jsonl", offsets, 3, frame, None, 0))
    step.flush()
    with pytest.raises(SourceError, match=r"knew files of JSON lines by their name alone, .* Start a fresh store"):
        feed(store, path)


def test_views_that_know_a_file_by_two_names_are_fed_apart(tmp_path, store):
    path = tmp_path / "01" / "a.parquet"
    path.parent.mkdir()
    passages(5).write_parquet(path)
    feed(store, path, views=[Doors])
    feed(store, tmp_path / "*" / "a.parquet", views=[Ways])
    with pytest.raises(SourceError, match=r"by different views: feed these views one at a time"):
        feed(store, path, views=[Doors, Ways])
    feed(store, path, views=[Ways])
    assert counted(store) == counted(store, Ways) == 5


def test_files_of_an_archive_are_the_same_by_folder_and_by_pattern(tmp_path, store):
    archiver = Archiver(tmp_path / "archive")
    frame = passages(30, span_us=3 * 86_400_000_000)
    offsets = frame.select(pl.int_range(30)).to_series().to_numpy()
    archiver.apply(EventBatch(Passage, "passages/0", offsets, 30, frame, None, 0))
    archiver.finish()
    ways = [tmp_path / "archive", tmp_path / "archive/passages/*/*.parquet", tmp_path / "archive/**/*.parquet"]
    for first in range(3):
        for way in ways[first:] + ways[:first]:
            with OnlineStore.open(store.url, 4, f"{store.namespace}{first}") as fresh:
                feed(fresh, way)
                assert counted(fresh) == 30, way


def test_a_changed_value_in_the_middle_of_a_large_csv_is_noticed(tmp_path, store):
    frame = passages(4_000).sort("at")
    path = tmp_path / "log.csv"
    frame.write_csv(path)
    feed(store, path)
    data = bytearray(path.read_bytes())
    middle = data.index(b",in,", len(data) // 2)
    data[middle : middle + 4] = b",on,"
    path.write_bytes(data)
    assert path.stat().st_size > 200_000
    with pytest.raises(SourceError, match="has changed since 4,000 of its rows were read"):
        feed(store, path)


def test_a_file_whose_name_is_no_utf_8_counts_once(tmp_path, store):
    """Names of files are bytes; those of partitions are text."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    write(path, LINES[:3])
    feed(store, tmp_path / "*.jsonl")
    write(path, LINES[:5])
    feed(store, tmp_path / "*.jsonl")
    feed(store, path)
    assert counted(store) == 5
    [place] = find_files(path).files
    assert (place.name, place.url) == (r"caf\udce9.jsonl", rf"{tmp_path}/caf\udce9.jsonl")
