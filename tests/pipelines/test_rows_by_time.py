"""Rows that wait: the same rows come out whatever was in memory, in files, saved or loaded."""

import threading
from contextlib import suppress

import polars as pl
import pytest

from headrace.errors import SnapshotError
from headrace.pipelines.checkpoints import Checkpoints, CheckpointThread
from headrace.pipelines.joining.rows_by_time import FULL_ROWS, RowsByTime
from tests.faults import full_disk

STEP_US = 100


def store(folder=None, **options) -> RowsByTime:
    limits = {"rows_max": 1_000_000, "write_rows": 1_000_000, **options}
    made = RowsByTime("rows", {"at": pl.Int64(), "text": pl.String()}, pl.col("at"), STEP_US, **limits)
    if folder is not None:
        made.keep_in(folder)
    return made


def rows(first: int, end: int) -> pl.DataFrame:
    return pl.DataFrame({"at": range(first, end)}).with_columns(text=pl.format("row {}", "at"))


def test_many_saves_make_few_files(tmp_path):
    """A save of a hundred rows merges them with the last small file; every 4,096 rows a file is left as it is."""
    kept = store(tmp_path / "rows")
    for number in range(100):
        kept.add(pl.DataFrame({"at": [number % 50] * 100, "text": ["x"] * 100}))
        facts = kept.capture()(tmp_path)
        assert len(facts["files"]) <= 1 + kept.rows // FULL_ROWS
    assert sum(rows for _, _, rows, _ in facts["files"]) == kept.rows == 10_000
    assert len(list((tmp_path / "rows").iterdir())) <= 5  # and those of the checkpoint before
    assert kept.read()["text"].to_list() == ["x"] * 10_000


@pytest.mark.parametrize("limits", [{"rows_max": 150}, {"bytes_max": 3_000}, {"write_rows": 20}])
def test_what_is_kept_comes_back_and_stays_in_files(tmp_path, limits):
    """Through limits of rows and of bytes, saves and loads; loaded rows are not in memory."""
    kept, expected = store(tmp_path / "rows", **limits), store()
    for first in range(0, 1_000, 90):
        for each in (kept, expected):
            each.add(rows(first, first + 90))
        assert kept.rows_in_memory <= 500
        facts = kept.capture()(tmp_path)
        for each in (kept, expected):
            each.drop(each.due((first - 200) // STEP_US))
    facts = kept.capture()(tmp_path)
    again = store(tmp_path / "rows", **limits)
    again.load(tmp_path, facts)
    assert (again.rows, again.rows_in_memory, again.first()) == (expected.rows, 0, expected.first())
    assert again.read().sort("at").equals(expected.read().sort("at"))
    numbers = again.due(None)[:2]
    assert again.take(numbers).sort("at").equals(expected.take(numbers).sort("at"))
    assert again.rows == expected.rows == sum(again.rows_of(number) for number in again.due(None))


def test_without_a_kept_folder_a_save_is_whole(tmp_path):
    spilled = store(rows_max=50, spill=tmp_path / "spill")
    spilled.add(rows(0, 400))
    assert spilled.rows_in_memory <= 50
    facts = spilled.capture()(tmp_path)
    again = store(rows_max=50, spill=tmp_path / "again")
    again.load(tmp_path, facts)
    assert again.rows_in_memory <= 50
    assert again.read().equals(rows(0, 400))
    spilled.drop(spilled.due(None))
    assert not any((tmp_path / "spill").iterdir())


def test_a_missing_file_is_named(tmp_path):
    kept = store(tmp_path / "rows")
    kept.add(rows(0, 10))
    facts = kept.capture()(tmp_path)
    next((tmp_path / "rows").iterdir()).unlink()
    with pytest.raises(SnapshotError, match="waiting rows in .* missing or damaged"):
        store(tmp_path / "rows").load(tmp_path, facts)


def test_a_checkpoint_is_written_in_a_thread(tmp_path):
    """The caller goes on, the next waits for the one before, and a failure is raised there."""
    checkpoints, gate = Checkpoints(tmp_path), threading.Event()
    thread = CheckpointThread(checkpoints)

    def fill(folder):
        gate.wait(30)
        (folder / "state").write_text("whole")

    thread.submit({"n": 1}, fill)
    assert thread.is_busy
    assert checkpoints.newest() is None
    gate.set()
    thread.wait()
    assert checkpoints.newest()[1]["n"] == 1
    thread.submit({"n": 2}, lambda folder: (folder / "none" / "state").write_text(""))
    with pytest.raises(FileNotFoundError):
        thread.submit({"n": 3}, fill)
    assert checkpoints.newest()[1]["n"] == 1


@pytest.mark.parametrize("limits", [{}, {"write_rows": 20}, {"rows_max": 150}])
def test_a_file_that_could_not_be_written_is_written_once_there_is_room(tmp_path, limits):
    """Rows of a slice that gets no more of them; the checkpoint before names its files until then."""
    kept, expected = store(tmp_path / "rows", **limits), store()
    with full_disk(2_000):
        for first in (0, 120):
            expected.add(rows(first, first + 120))
            with suppress(OSError):  # of rows beyond the limit; they are kept in memory
                kept.add(rows(first, first + 120))
        for _ in range(2):
            with pytest.raises(OSError, match="too large"):
                kept.capture()(tmp_path)
            kept.not_written()
    assert kept.read().sort("at").equals(expected.read().sort("at"))
    facts = kept.capture()(tmp_path)
    again = store(tmp_path / "rows", **limits)
    again.load(tmp_path, facts)
    assert again.read().sort("at").equals(expected.read().sort("at"))
    assert again.rows == kept.rows == 240


def test_rows_that_cannot_be_spilled_stay_in_memory(tmp_path):
    spilled = store(spill=tmp_path, rows_max=200)
    with full_disk(2_000), pytest.raises(OSError, match="too large"):
        spilled.add(rows(0, 300))
    assert spilled.read()["at"].sort().to_list() == list(range(300))
    spilled.add(rows(300, 310))
    assert spilled.rows_in_memory <= 200
    assert spilled.read()["at"].sort().to_list() == list(range(310))
