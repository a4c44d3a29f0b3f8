"""The archive holds each event once, also after a crash between the files and the offsets."""

import subprocess
import sys
import time
import uuid

import fsspec
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import ServiceError, SourceError
from headrace.pipelines.archiver import Archiver
from headrace.streams.file_source import FileSource
from tests import forked
from tests.turnstiles import Passage, as_batch, drain, passage_of, passages

LOG = passages(1_000, span_us=3 * 86_400_000_000)


def archived(folder) -> pl.DataFrame:
    batches = drain(FileSource(f"{folder}/passages/*/*.parquet", Passage))
    return pl.concat([batch.frame for batch in batches]).sort("passage_id")


def test_files_are_by_day_and_hold_each_row_once(tmp_path):
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG[:400]))
    first = archiver.finish()
    archiver.apply(as_batch(Passage, LOG[300:], first=300))
    archiver.apply(as_batch(Passage, LOG[:0], first=1_010))
    second = archiver.finish()
    assert all(
        pl.read_parquet(path)["at"].dt.date().cast(pl.String).unique().to_list() == [path.parent.name] for path in first
    )
    assert {path.name for path in second} == {"0.400-1010.parquet"}
    assert_frame_equal(archived(tmp_path), LOG.sort("passage_id"))
    assert Archiver(tmp_path).positions() == {"passages/0": 1_010}


def test_files_without_their_offsets_are_written_anew(tmp_path):
    """files 0..500 | offsets | files 500..700 | crash | start: from 500 again, with other batches."""
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG[:500]))
    archiver.finish()
    committed = (tmp_path / "passages" / "offsets.json").read_bytes()
    archiver.apply(as_batch(Passage, LOG[500:700], first=500))
    archiver.finish()
    (tmp_path / "passages" / "offsets.json").write_bytes(committed)
    again = Archiver(tmp_path)
    assert again.positions() == {"passages/0": 500}
    again.apply(as_batch(Passage, LOG[500:], first=500))
    again.finish()
    assert_frame_equal(archived(tmp_path), LOG.sort("passage_id"))


def test_a_crash_before_the_first_offsets_leaves_nothing_twice(tmp_path):
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG))
    archiver.finish()
    (tmp_path / "passages" / "offsets.json").unlink()
    again = Archiver(tmp_path)
    assert again.positions() == {}
    assert not list(tmp_path.glob("*/*/*.parquet"))


def test_it_flushes_by_rows_and_by_time(tmp_path):
    archiver = Archiver(tmp_path, flush_s=1e9, rows_max=500)
    archiver.apply(as_batch(Passage, LOG[:400]))
    assert archiver.tick() == []
    archiver.apply(as_batch(Passage, LOG[400:600], first=400))
    assert archiver.tick()
    assert archiver.due_s is None
    impatient = Archiver(tmp_path / "other", flush_s=0)
    impatient.apply(as_batch(Passage, LOG[:4]))
    assert impatient.tick()


def test_topics_with_partitions_of_one_number_are_kept_apart(tmp_path):
    other = passage_of("others")
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG))
    archiver.apply(as_batch(other, LOG[:10]))
    archiver.finish()
    (tmp_path / "others" / "notes.parquet").write_bytes(b"not ours")
    again = Archiver(tmp_path)
    assert again.positions() == {"passages/0": 1_000, "others/0": 10}
    assert archived(tmp_path).height == 1_000


KILLED = """
import os, signal, sys
import polars as pl
from headrace.pipelines.archiver import Archiver
from tests.pipelines.test_archiver import LOG
from tests.turnstiles import Passage, as_batch

def half(frame, file):
    file.write(b"PAR1 half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step = Archiver(sys.argv[1])
step.apply(as_batch(Passage, LOG[:500]))
step.finish()
step.apply(as_batch(Passage, LOG[500:700], first=500))
if sys.argv[2] == "files":
    pl.DataFrame.write_parquet = half
else:
    step._commit = die
step.finish()
"""


@pytest.mark.parametrize("amid", ["files", "offsets"])
def test_readers_pass_over_what_a_kill_left(tmp_path, repo, amid):
    """files 0..500 | offsets | files 500..700, the first of them by half or all of them | kill -9"""
    done = forked.run(["-c", KILLED, tmp_path, amid], cwd=repo)
    assert done.returncode == -9
    place = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(tmp_path), place, recursive=True)
    for folder in (tmp_path, place):
        source = FileSource(folder, Passage)
        assert source.ends() == {"passages/0": 500}
        found = pl.concat([batch.frame for batch in drain(source)]).sort("passage_id")
        assert_frame_equal(found, LOG[:500].sort("passage_id"))
    again = Archiver(tmp_path)
    again.apply(as_batch(Passage, LOG[500:], first=500))
    again.finish()
    assert not list(tmp_path.rglob("*.new"))
    assert_frame_equal(archived(tmp_path), LOG.sort("passage_id"))


ARCHIVES = """
import sys
from headrace.pipelines.archiver import Archiver
from tests.pipelines.test_archiver import LOG
from tests.turnstiles import Passage, as_batch, passage_of

event = Passage if sys.argv[2] == "passages" else passage_of(sys.argv[2])
step = Archiver(sys.argv[1])
step.apply(as_batch(event, LOG[:300], partition=f"{sys.argv[2]}/0"))
step._commit = lambda topic: None if input() else None
print("written", flush=True)
step.finish()
"""


@pytest.fixture
def another(tmp_path, repo):
    """Start another process that archives rows 0 to 300 of a topic, and stands before the offsets."""
    running = []

    def start(topic):
        words = ["-c", ARCHIVES, str(tmp_path), topic]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, *words], cwd=repo, text=True, **pipes)
        running.append(process)
        assert process.stdout.readline() == "written\n"
        deadline_s = time.monotonic() + 60
        while not list(tmp_path.glob(f"{topic}/*/*.parquet")) and time.monotonic() < deadline_s:
            time.sleep(0.01)

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_topic_is_archived_by_one_process(tmp_path, another):
    """A second archiver neither deletes what the first has written and not yet committed, nor writes beside it."""
    another("passages")
    step = Archiver(tmp_path)
    assert list(tmp_path.glob("passages/*/0.0-300.parquet"))
    with pytest.raises(ServiceError, match=r"passages: another process writes it; wait for its end"):
        step.apply(as_batch(Passage, LOG))


def test_two_processes_archive_two_topics_into_one_folder(tmp_path, another):
    another("others")
    step = Archiver(tmp_path)
    step.apply(as_batch(Passage, LOG))
    step.finish()
    assert list(tmp_path.glob("others/*/0.0-300.parquet"))
    assert_frame_equal(archived(tmp_path), LOG.sort("passage_id"))


def test_an_archive_of_two_writers_is_refused(tmp_path):
    """On a file system without locks, or of two machines: its rows would count twice."""
    for end in (300, 500):
        (tmp_path / "passages" / "offsets.json").unlink(missing_ok=True)
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
        step = Archiver(tmp_path)
        step.apply(as_batch(Passage, LOG[:end]))
        step.finish()
        for path, content in kept.items():
            path.write_bytes(content)
    place = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(tmp_path), place, recursive=True)
    for folder in (tmp_path, place):
        with pytest.raises(SourceError, match=r"passages/0 are in two of its files, 0.0-300.parquet and 0.0-500"):
            drain(FileSource(folder, Passage))


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"passages/0": -1}', b'{"passages/0": "a"}'])
def test_damaged_offsets_are_named_by_writer_and_reader(tmp_path, content):
    step = Archiver(tmp_path)
    step.apply(as_batch(Passage, LOG))
    step.finish()
    (tmp_path / "passages" / "offsets.json").write_bytes(content)
    for act in (Archiver, lambda folder: drain(FileSource(folder, Passage))):
        with pytest.raises(SourceError, match=r"its offsets.json is damaged .*; restore it, or archive anew"):
            act(tmp_path)


def test_shares_of_an_archive_that_grows_are_those_of_one_moment(tmp_path):
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG[:500]))
    archiver.finish()
    source = FileSource(tmp_path, Passage)
    first = source.share(0, 2)
    archiver.apply(as_batch(Passage, LOG[500:], first=500))
    archiver.finish()
    second = source.share(1, 2)
    rows = [pl.concat([batch.frame for batch in drain(share)]) for share in (first, second)]
    assert_frame_equal(pl.concat(rows).sort("passage_id"), LOG[:500].sort("passage_id"))


def test_a_file_that_is_not_the_archivers_is_named(tmp_path):
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(Passage, LOG))
    [path, *_] = archiver.finish()
    path.rename(path.with_name("compacted.parquet"))
    with pytest.raises(SourceError, match=r"compacted.parquet lies in an archive and is not named as its files are"):
        FileSource(tmp_path, Passage).partitions()
