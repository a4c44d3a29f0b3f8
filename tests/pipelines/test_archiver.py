"""The archive holds each event once, also after a crash between the files and the offsets."""

import polars as pl
from polars.testing import assert_frame_equal

from headrace.pipelines.archiver import Archiver
from headrace.pipelines.file_source import FileSource
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
