"""A replay's file is of the format that its suffix says, whole or not there, and never written over unasked."""

import csv
import json
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import ConfigError
from headrace.features import Count, FeatureView, LastN, VectorMean
from headrace.history.export import replay_to_file
from headrace.history.output import WRITERS, write_output
from headrace.history.replay import replay
from headrace.schemas import Event
from tests import forked

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Visit(Event, topic="visits", key="guest", time="at", id="visit_id"):
    """A guest came."""

    visit_id: str
    at: datetime
    guest: int
    place: list[float]


class Guest(FeatureView, source=Visit, entity="guest"):
    """Numbers, times, texts and vectors as lists."""

    visits = Count(windows="lifetime")
    ids = LastN("visit_id", n=2)
    when = LastN("at", n=2)
    mean = VectorMean("place", dim=2, windows="lifetime")


@pytest.fixture
def paths(tmp_path):
    log = pl.DataFrame(
        {
            "visit_id": ["a", 'b"c', "d"],
            "at": [NOON + timedelta(seconds=s) for s in (0, 1, 2)],
            "guest": [1, 1, 2],
            "place": [[1.0, 2.0], [3.0, 4.0], [0.5, 0.25]],
        }
    )
    spine = pl.DataFrame(
        {
            "guest": [1, 2, 3],
            "event_time": [NOON + timedelta(minutes=1)] * 3,
            "text": ["plain", "", None],
            "score": [0.5, float("nan"), float("inf")],
            "day": [date(2026, 1, 1), None, None],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    spine.write_parquet(tmp_path / "spine.parquet")
    return tmp_path / "log.parquet", tmp_path / "spine.parquet"


@pytest.mark.parametrize("suffix", [".parquet", ".PARQUET", ".arrow", ".ipc", ".feather"])
def test_columns_keep_their_types(tmp_path, paths, suffix):
    out = tmp_path / f"out{suffix}"
    assert replay_to_file([Guest], *paths, out) == 3
    read = pl.read_parquet if suffix.lower() == ".parquet" else pl.read_ipc
    assert_frame_equal(read(out), replay(Guest, *paths))
    assert out.read_bytes()[:4] == (b"PAR1" if suffix.lower() == ".parquet" else b"ARRO")


def test_csv_has_iso_times_lists_as_json_and_tells_empty_from_null(tmp_path, paths):
    out = tmp_path / "out.csv"
    replay_to_file([Guest], *paths, out)
    text = out.read_text()
    assert text.splitlines()[2].split(",")[2] == '""'
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["event_time"] for row in rows] == ["2026-01-01T12:01:00.000000Z"] * 3
    assert [json.loads(row["guest.ids"]) for row in rows] == [['b"c', "a"], ["d"], []]
    assert json.loads(rows[0]["guest.when"]) == ["2026-01-01T12:00:01.000000Z", "2026-01-01T12:00:00.000000Z"]
    assert json.loads(rows[0]["guest.mean_lifetime"]) == [2.0, 3.0]
    assert [float(row["score"]) for row in rows][2] == float("inf")
    assert [row["guest.visits_lifetime"] for row in rows] == ["2", "1", "0"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines_lose_nothing(tmp_path, paths, suffix):
    out = tmp_path / f"out{suffix}"
    replay_to_file([Guest], *paths, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["score"] for row in rows] == [0.5, "NaN", "Infinity"]
    assert [row["text"] for row in rows] == ["plain", "", None]
    assert rows[0]["event_time"] == "2026-01-01T12:01:00.000000Z"
    assert rows[0]["guest.when"] == ["2026-01-01T12:00:01.000000Z", "2026-01-01T12:00:00.000000Z"]
    assert rows[0]["day"] == "2026-01-01"


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_spine_without_rows_gives_a_file_without_rows(tmp_path, paths, suffix):
    log, spine = paths
    pl.read_parquet(spine).head(0).write_parquet(spine)
    out = tmp_path / f"out{suffix}"
    assert replay_to_file([Guest], log, spine, out) == 0
    assert out.is_file()


def a_folder(folder):
    return folder, "is a folder; name a file in it, as .*training.parquet"


def no_suffix(folder):
    return folder / "out", "no suffix is no format; use one of .parquet, .arrow, .ipc, .feather, .csv, .jsonl, .ndjson"


def other_suffix(folder):
    return folder / "out.xlsx", ".xlsx is no format; use one of"


def no_folder(folder):
    return folder / "none" / "out.csv", "there is no folder .*none; make it, or name another"


def there_already(folder):
    (folder / "out.csv").write_text("precious")
    return folder / "out.csv", "out.csv is there already; --overwrite replaces it"


@pytest.mark.parametrize(
    "case", [a_folder, no_suffix, other_suffix, no_folder, there_already], ids=lambda case: case.__name__
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, paths, case):
    out, message = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        replay_to_file([Guest], *paths, out, report=lambda *_words: pytest.fail("work was begun"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_replaced_when_asked(tmp_path, paths):
    out = tmp_path / "out.csv"
    out.write_text("old")
    replay_to_file([Guest], *paths, out, overwrite=True)
    assert "guest.visits_lifetime" in out.read_text()


CHECK = """
import os, sys
from pathlib import Path
from headrace.errors import ConfigError
from headrace.history.output import check_output

if os.geteuid() == 0:  # root may write anywhere
    os.setgid(65534)
    os.setuid(65534)
try:
    check_output(Path(sys.argv[1]), overwrite=False)
except ConfigError as exc:
    print(exc)
"""


def test_a_closed_folder_is_refused():
    with tempfile.TemporaryDirectory() as closed:
        Path(closed).chmod(0o555)
        done = forked.run(["-c", CHECK, f"{closed}/out.csv"], check=True)
        Path(closed).chmod(0o755)
    assert f"nothing can be written in {closed}; open it for writing" in done.stdout


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def pieces():
        yield pl.DataFrame({"a": [1]})
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device; mend that, and go on with --resume"):
        write_output(pieces(), out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
