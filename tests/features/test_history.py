"""Replay of history from anywhere and of any size is replay of the same frame in memory."""

import functools
import http.server
import io
import random
import threading
import urllib.parse
import uuid
from typing import ClassVar

import fastavro
import fsspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.errors import SchemaError, SourceError
from headrace.history.external_sort import Sorter, keys_of, merged, overlap
from headrace.history.log import Span, open_log
from headrace.history.replay import replay
from headrace.local import free_port
from headrace.pipelines import Archiver, EventBatch
from headrace.schemas import spec_of
from tests import forked
from tests.features.test_law import history
from tests.features.test_replay import Short, spine_of
from tests.logs import capture_logs
from tests.rides import BASE_US, Check, Ride, RiderTrips, frames, ride
from tests.spines import in_time
from tests.tiers import by_tier


def rides(rows, seed=0, riders=9):
    """Rides at random times, many of them equal, in no order; fares and zones as the declaration has them."""
    rng = random.Random(seed)
    found = []
    while len(found) < rows:
        event = ride(len(found), BASE_US + rng.randrange(3 * rows) * 1_000_000, rng.randrange(riders), rng)
        found += [event] if event["class"] == "Ride" else []
    return frames(found)[Ride]


def spine(rows, seed=1):
    rng = random.Random(seed)
    riders, moments = [rng.randrange(10) for _ in range(rows)], [rng.randrange(400) for _ in range(rows)]
    return in_time(pl.DataFrame({"rider": riders, "event_time": [BASE_US + at * 1_000_000 for at in moments]}))


def write_avro(frame, path):
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(spec_of(Ride).avro), frame.to_dicts(), sync_interval=1_000)


WRITERS = {
    "parquet": lambda frame, path: frame.write_parquet(path, row_group_size=17),
    "arrow": lambda frame, path: frame.write_ipc(path, record_batch_size=13),
    "ipc": lambda frame, path: frame.write_ipc_stream(path),
    "avro": write_avro,
    "jsonl": lambda frame, path: frame.write_ndjson(path),
    "csv": lambda frame, path: frame.write_csv(path),
}


@settings(
    max_examples=by_tier(fast=30, whole=60),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_merge_of_runs_is_one_stable_sort(tmp_path, data):
    """Whatever the sizes of frames, runs and stretches."""
    keys = data.draw(st.lists(st.integers(-5, 5), max_size=60))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=4)))
    frame = pl.DataFrame({"key": keys, "place": range(len(keys))}, schema={"key": pl.Int64, "place": pl.Int64})
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    sorter = Sorter(pl.col("key"), data.draw(st.integers(1, 30)), lambda: folder)
    for start, end in zip([0, *cuts], [*cuts, len(keys)], strict=True):
        sorter.add(frame[start:end])
    parts, before = [frame[:0]], -99
    for stretch, cut in merged({"a": sorter.blocks()}, {"a": pl.col("key")}, data.draw(st.integers(1, 40))):
        for part in stretch.values():
            assert keys_of(part, pl.col("key")).min() >= before
            assert cut is None or keys_of(part, pl.col("key")).max() < cut
            parts.append(part)
        before = cut
    assert cut is None
    assert_frame_equal(pl.concat(parts), frame.sort("key", maintain_order=True))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("memory_rows", [10_000, 60, 7])
def test_a_log_of_any_format_and_size(tmp_path, suffix, memory_rows):
    """In memory, by row groups, and through runs on disk; as one file, a glob and a list."""
    frame, rows = rides(200), spine(90)
    (tmp_path / "one").mkdir()
    for name, part in (("one/c", frame), ("a", frame[:80]), ("b", frame[80:])):
        WRITERS[suffix](part, tmp_path / f"{name}.{suffix}")
    wanted = replay(Short, frame, rows)
    for table in (
        tmp_path / "one" / f"c.{suffix}",
        str(tmp_path / f"*.{suffix}"),
        [tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"],
    ):
        assert_frame_equal(replay(Short, table, rows, memory_rows=memory_rows, chunk_rows=40), wanted)


@settings(
    max_examples=by_tier(fast=8, whole=15),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32), memory_rows=st.integers(1, 80), chunk_rows=st.integers(1, 80))
def test_two_classes_within_any_budget(tmp_path, seed, memory_rows, chunk_rows):
    rng = random.Random(seed)
    events = history(rng, rng.randrange(2, 60))
    tables, rows = frames(events), in_time(spine_of(rng, events, rng.randrange(1, 25)))
    files = {}
    for event, suffix in ((Ride, "parquet"), (Check, "arrow")):
        files[event] = tmp_path / f"{uuid.uuid4().hex}.{suffix}"
        frame = tables.get(event, pl.DataFrame(schema=spec_of(event).polars))
        WRITERS[suffix](frame.sample(fraction=1.0, shuffle=True, seed=seed % 1_000), files[event])
    found = replay(RiderTrips, files, rows, memory_rows=memory_rows, chunk_rows=chunk_rows)
    lazy = {Ride: pl.scan_parquet(files[Ride]), Check: pl.read_ipc(files[Check]).lazy()}
    again = replay(RiderTrips, lazy, rows.lazy(), memory_rows=memory_rows)
    wanted = replay(RiderTrips, {event: frame.collect() for event, frame in lazy.items()}, rows)
    assert_frame_equal(found, wanted, rel_tol=1e-9)
    assert_frame_equal(again, wanted, rel_tol=1e-9)


def test_row_groups_that_follow_each_other_are_not_sorted_on_disk(tmp_path):
    """A sorted Parquet log is read where it lies; a shuffled one is not."""
    frame = rides(300).sort("at")
    frame.write_parquet(tmp_path / "sorted.parquet", row_group_size=20)
    frame.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "mixed.parquet", row_group_size=20)

    def room():
        raise AssertionError("nothing should be written")

    [blocks] = open_log({Ride: tmp_path / "sorted.parquet"}, Span(), 299, room).values()
    assert overlap(blocks) <= 299
    with pytest.raises(AssertionError, match="nothing should"):
        open_log({Ride: tmp_path / "mixed.parquet"}, Span(), 100, room)


def test_files_of_other_filesystems(tmp_path):
    """In memory as fsspec has it, over HTTP, and by file://; spines too."""
    frame, rows = rides(120), spine(40)
    wanted = replay(Short, frame, rows)
    frame.write_parquet(tmp_path / "log.parquet")
    rows.write_csv(tmp_path / "spine.csv")
    place = f"memory://{uuid.uuid4().hex}"
    for name, part in (("a", frame[:70]), ("b", frame[70:])):
        with fsspec.open(f"{place}/day/{name}.parquet", "wb") as file:
            part.write_parquet(file)
    assert_frame_equal(replay(Short, f"{place}/*/*.parquet", rows), wanted)
    assert_frame_equal(replay(Short, f"{place}/*/*.parquet", rows, memory_rows=50), wanted)
    assert_frame_equal(replay(Short, f"file://{tmp_path}/*.parquet", f"file://{tmp_path}/spine.csv"), wanted)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert_frame_equal(replay(Short, f"{url}/log.parquet", f"{url}/spine.csv"), wanted)
        with pytest.raises(SourceError, match=f"{url}/none.parquet"):
            replay(Short, f"{url}/none.parquet", rows)
        server.shutdown()


class Refusing(http.server.BaseHTTPRequestHandler):
    """Nobody may read."""

    def do_GET(self):
        self.send_error(403)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_server_that_refuses_is_told_from_a_missing_file():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SourceError, match=r"/log.parquet cannot be read: 403, .*Forbidden"):
            replay(Short, f"http://127.0.0.1:{server.server_port}/log.parquet", spine(3))
        server.shutdown()
    with pytest.raises(SourceError, match=r"/log.parquet cannot be read: Cannot connect to host 127.0.0.1"):
        replay(Short, f"http://127.0.0.1:{free_port()}/log.parquet", spine(3))


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 as reading takes: list, size, and bytes of objects; `objects` by key."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        words = urllib.parse.parse_qs(url.query)
        key = urllib.parse.unquote(url.path).removeprefix("/bucket").lstrip("/")
        if key in self.objects:
            body, span = self.objects[key], self.headers.get("Range")
            if span is None:
                return self.answer(200, body, ETag='"1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
            first, last = (int(edge) for edge in span.removeprefix("bytes=").split("-"))
            about = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
            return self.answer(206, body[first : last + 1], ETag='"1"', Content_Range=about)
        if "list-type" not in words:
            return self.answer(404)
        found = [name for name in sorted(self.objects) if name.startswith(words.get("prefix", [""])[0])]
        listed = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(self.objects[name])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in found
        )
        text = f"<ListBucketResult><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{listed}"
        return self.answer(200, f"{text}</ListBucketResult>".encode(), Content_Type="application/xml")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_an_s3_bucket_needs_no_further_package(monkeypatch):
    """Through pyarrow, whose S3 client asks a server as small as can be."""
    for name, value in (("AWS_ACCESS_KEY_ID", "who"), ("AWS_SECRET_ACCESS_KEY", "knows")):
        monkeypatch.setenv(name, value)
    frame, rows = rides(120), spine(40)
    wanted = replay(Short, frame, rows)
    for name, part in (("log/1/a.parquet", frame[:70]), ("log/2/b.parquet", frame[70:])):
        out = io.BytesIO()
        part.write_parquet(out)
        Bucket.objects[name] = out.getvalue()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
        assert_frame_equal(replay(Short, f"s3://bucket/log/*/*.parquet?{asked}", rows), wanted)
        files = [f"s3://bucket/log/{name}.parquet?{asked}" for name in ("1/a", "2/b")]
        assert_frame_equal(replay(Short, files, rows, memory_rows=50), wanted)
        with pytest.raises(SourceError, match=r"file s3://bucket/log/none.parquet.* does not exist"):
            replay(Short, f"s3://bucket/log/none.parquet?{asked}", rows)
        server.shutdown()


def test_an_archive_is_a_log(tmp_path):
    """The folder that the archiver wrote, and the same elsewhere."""
    frame, rows = rides(150), spine(40)
    archiver = Archiver(tmp_path / "archive")
    for start in (0, 70):
        part = frame[start : start + 80 - start // 7]
        offsets = part.select(pl.int_range(start, start + pl.len())).to_series().to_numpy()
        archiver.apply(EventBatch(Ride, "rides/0", offsets, start + part.height, part, None, 0))
        archiver.finish()
    frame = pl.concat([frame[:80], frame[80:140]])
    wanted = replay(Short, frame, rows)
    assert_frame_equal(replay(Short, tmp_path / "archive", rows), wanted)
    assert_frame_equal(replay(Short, tmp_path / "archive", rows, memory_rows=30), wanted)
    place = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(tmp_path / "archive"), place, recursive=True)
    assert_frame_equal(replay(Short, place, rows), wanted)


@pytest.mark.parametrize("kind", ["file", "frame", "lazy"])
def test_rows_that_break_a_rule_are_left_out_as_in_the_live_flow(tmp_path, kind):
    """Whatever the log is; told with how many, and why."""
    frame = rides(50)
    bad = frame[:5].with_columns(kind=pl.lit("stolen"))
    log = pl.concat([frame[:20], bad, frame[20:]])
    log.write_parquet(tmp_path / "log.parquet")
    table = {"file": tmp_path / "log.parquet", "frame": log, "lazy": log.lazy()}[kind]
    with capture_logs() as logs:
        found = replay(Short, table, spine(30))
    assert_frame_equal(found, replay(Short, frame, spine(30)))
    assert [(line["event"], line["rows"], line["reason"]) for line in logs] == [("bad_rows_left_out", 5, "not_allowed")]


def test_a_frame_is_fitted_to_its_declaration_as_a_file_is(tmp_path):
    """Other units of time and widths of integers; a column that no view reads may be absent; no digit is lost."""
    frame, rows = rides(50), spine(30)
    wanted = replay(Short, frame, rows)
    other = frame.with_columns(pl.col("at").dt.cast_time_unit("ms"), pl.col("stops").cast(pl.Int8)).drop("zone")
    assert_frame_equal(replay(Short, other, rows), wanted)
    assert_frame_equal(replay(Short, other.lazy(), rows), wanted)
    broken = frame.with_columns(pl.col("stops") + 0.7)
    broken.write_parquet(tmp_path / "log.parquet")
    for table in (broken, broken.lazy(), tmp_path / "log.parquet"):
        with pytest.raises(SchemaError, match=r"Ride.stops: found Float64, wanted Int64; the cast would lose digits"):
            replay(Short, table, rows)
    with pytest.raises(SchemaError, match=r"event Ride.at: no such column"):
        replay(Short, frame.drop("at"), rows)


def empty_line(folder):
    (folder / "log.jsonl").write_text('{"ride_id": 3}\n')
    return folder / "log.jsonl", SchemaError, r"log.jsonl · line 1: "


def other_column(folder):
    rides(9).drop("line").write_parquet(folder / "log.parquet")
    return folder / "log.parquet", SchemaError, r"log.parquet: event Ride.line: no such column"


def no_format(folder):
    (folder / "log.xml").write_text("<a/>")
    return folder / "log.xml", SourceError, r"no reader for '.xml'; use one of .parquet"


def damaged(folder):
    (folder / "log.parquet").write_bytes(b"PAR1 and nothing else")
    return folder / "log.parquet", SourceError, "log.parquet cannot be read: "


def nothing_there(folder):
    return f"{folder}/*.parquet", SourceError, "no file matches"


def a_folder(folder):
    return folder, SourceError, "is a folder; add a pattern"


def empty_list(folder):
    return [], SourceError, "events Ride: no files given"


def no_protocol(folder):
    return "gopher://log/*.parquet", SourceError, "gopher://.*gopher"


def nothing_in_memory(folder):
    return "memory://nowhere/*.parquet", SourceError, "no file matches memory://nowhere"


CASES = [
    empty_line,
    other_column,
    no_format,
    damaged,
    nothing_there,
    a_folder,
    empty_list,
    no_protocol,
    nothing_in_memory,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("memory_rows", [1_000, 3])
def test_what_cannot_be_read_is_one_error_that_names_it(tmp_path, case, memory_rows):
    table, error, message = case(tmp_path)
    with pytest.raises(error, match=message):
        replay(Short, table, spine(3), memory_rows=memory_rows)


PROGRAM = """
import sys
import polars as pl
from headrace.history.replay import replay
from tests.features.test_replay import Short
from tests.rides import Ride

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

log, spine, memory_rows = sys.argv[1:]
head = pl.read_parquet(log, n_rows=1_000).cast({"at": pl.Datetime("us", "UTC")})
replay(Short, head, pl.read_parquet(spine), chunk_rows=100_000)  # compiled code and its room
before = peak()
found = replay(Short, log, spine, memory_rows=int(memory_rows), chunk_rows=100_000)
print(peak() - before, found.select(pl.selectors.contains("."))["short.rides_24h"].sum())
"""


@pytest.mark.slow
def test_memory_follows_the_budget_and_not_the_log(tmp_path, repo):
    """A shuffled log of ten budgets and more takes less than half the memory that the whole of it takes."""
    rows, month_us = 3_000_000, 30 * 86_400_000_000
    near = rides(10_000, riders=500)
    after_us = pl.int_range(rows) * 7_919_000_003 % month_us
    frame = pl.concat([near] * (rows // near.height)).with_columns(
        ride_id=pl.int_range(rows).cast(pl.String).str.zfill(24), at=(BASE_US + after_us).cast(pl.Datetime("us", "UTC"))
    )
    frame.write_parquet(tmp_path / "log.parquet")
    late = spine(2_000).with_columns(pl.col("event_time").dt.offset_by("29d"))
    late.write_parquet(tmp_path / "spine.parquet")
    found = {}
    for memory_rows in (10 * rows, rows // 15):
        command = ["-c", PROGRAM, str(tmp_path / "log.parquet"), str(tmp_path / "spine.parquet")]
        done = forked.run([*command, memory_rows], cwd=repo, check=True)
        found[memory_rows] = done.stdout.split()
    (whole, total), (bounded, same) = found.values()
    assert total == same
    assert float(total) > 0
    assert float(bounded) < float(whole) / 2, found
