"""Replay into a file is replay into a frame, in however many parts, and however often it was killed."""

import contextlib
import os
import random
import signal
import subprocess
import uuid

import polars as pl
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.errors import ConfigError, HeadraceError, SchemaError, SourceError, SpineError
from headrace.features import Count, FeatureView, LastN, col
from headrace.history.export import replay_to_file
from headrace.history.parts import Progress
from headrace.history.replay import replay
from headrace.schemas import spec_of
from tests.features.test_history import rides, spine
from tests.features.test_law import history
from tests.features.test_replay import Short, spine_of
from tests.forked import Forked, run
from tests.rides import BASE_US, Check, Ride, RiderTrips, frames
from tests.spines import in_time
from tests.tiers import by_tier


class LineTrips(FeatureView, source=Ride, entity="line", request={"fare": float}):
    """Another entity, a text, and a field of the request."""

    rides = Count(windows=("10m", "24h"))
    riders = LastN("rider", n=4)
    dear = col("fare") * col("rides_24h")


@pytest.fixture
def files(tmp_path):
    """A shuffled log, a spine that two views read, and where answers go."""
    rides(400, seed=3).write_parquet(tmp_path / "log.parquet", row_group_size=30)
    rows = spine(300, seed=4)
    rng = random.Random(5)
    rows = rows.with_columns(
        ((pl.col("event_time").dt.epoch("us") - BASE_US) * 3 + BASE_US).cast(pl.Datetime("us", "UTC")),
        line=pl.Series([rng.choice(["1", "2", "3", "77", None]) for _ in range(rows.height)]),
        fare=pl.Series([rng.random() for _ in range(rows.height)]),
        note=pl.Series([f"row {place}" for place in range(rows.height)]).cast(pl.Categorical),
    )
    rows.write_parquet(tmp_path / "spine.parquet", row_group_size=70)
    return tmp_path / "log.parquet", tmp_path / "spine.parquet", tmp_path / "out.parquet"


def wanted(views, log, spine):
    return replay(views, pl.read_parquet(log), pl.read_parquet(spine))


def test_all_parts_read_the_log_that_there_was_at_the_start(tmp_path, files):
    """An archiver goes on meanwhile: the views of the second entity do not see more than those of the first."""
    log, rows, out = files
    (tmp_path / "log").mkdir()
    frame = pl.read_parquet(log)
    frame[:200].write_parquet(tmp_path / "log" / "a.parquet")

    def grow(*_):
        frame[200:].write_parquet(tmp_path / "log" / "b.parquet")

    replay_to_file([Short, LineTrips], f"{tmp_path}/log/*.parquet", rows, out, report=grow)
    assert_frame_equal(pl.read_parquet(out), replay([Short, LineTrips], frame[:200], pl.read_parquet(rows)))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), memory_rows=st.integers(2, 80), chunk_rows=st.integers(1, 80))
def test_a_file_is_what_a_frame_is(tmp_path, seed, memory_rows, chunk_rows):
    """With a checkpoint after every chunk, so that records are packed all the time."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(2, 60))
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    tables = {event: pl.DataFrame(schema=spec_of(event).polars) for event in (Ride, Check)} | frames(events)
    for event, frame in tables.items():
        frame.write_parquet(folder / f"{event.__name__}.parquet")
    rows = in_time(spine_of(rng, events, rng.randrange(25)))
    rows.write_parquet(folder / "spine.parquet")
    paths = {event: folder / f"{event.__name__}.parquet" for event in tables}
    options = {"memory_rows": memory_rows, "chunk_rows": chunk_rows, "checkpoint_s": 0.0}
    assert replay_to_file([RiderTrips], paths, folder / "spine.parquet", folder / "out.parquet", **options) == len(rows)
    assert_frame_equal(pl.read_parquet(folder / "out.parquet"), replay(RiderTrips, tables, rows), rel_tol=1e-9)
    assert sorted(path.stem for path in folder.iterdir()) == ["Check", "Ride", "out", "spine"]


def test_views_of_two_entities_in_two_processes(files):
    """Columns come in the order of the views, carried columns as they were."""
    log, spine, out = files
    told = []
    rows = replay_to_file(
        [Short, LineTrips],
        log,
        spine,
        out,
        workers=2,
        memory_rows=100,
        chunk_rows=50,
        report=lambda *words: told.append(words),
    )
    found = pl.read_parquet(out)
    assert rows == 300
    assert_frame_equal(found, wanted([Short, LineTrips], log, spine), rel_tol=1e-9, categorical_as_str=True)
    assert {place for place, _, _ in told} == {0, 1, 2, 3}
    assert {place for place, done, total in told if done and total is None} == {0, 1, 2, 3}  # while the log is sorted
    totals = {place: total for place, _, total in told}
    assert sum(totals.values()) > 2 * 600


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "arrow"])
def test_spines_of_other_formats(files, tmp_path, suffix):
    log, spine, out = files
    rows = pl.read_parquet(spine).drop("note", "line", "fare")
    path = tmp_path / f"rows.{suffix}"
    {"csv": rows.write_csv, "jsonl": rows.write_ndjson, "arrow": rows.write_ipc}[suffix](path)
    replay_to_file([Short], log, path, out)
    assert_frame_equal(pl.read_parquet(out), replay(Short, log, rows))


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_run_that_is_stopped_goes_on_where_it_was(files, stop_after):
    """Whatever the chunk after which it stops; what was answered is not answered again."""
    log, spine, out = files
    options = {"memory_rows": 100, "chunk_rows": 50, "checkpoint_s": 0.0}
    asked, left = [], []

    def stop(place, done, total):
        asked.extend([done] * (total is not None))  # else it is still being read
        if len(asked) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_to_file([Short], log, spine, out, report=stop, **options)
    assert not out.exists()
    if stop_after > 1:
        with pytest.raises(ConfigError, match="left of a run that did not end: --resume goes on"):
            replay_to_file([Short], log, spine, out, **options)
    replay_to_file([Short], log, spine, out, resume=True, report=lambda *words: left.append(words), **options)
    assert left[-1][2] < 700 or stop_after == 1
    assert_frame_equal(pl.read_parquet(out), wanted([Short], log, spine), rel_tol=1e-9, categorical_as_str=True)


def test_a_run_goes_on_with_the_same_inputs_only(files):
    log, spine, out = files

    def stop(place, done, total):
        if total is not None and done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_to_file([Short], log, spine, out, chunk_rows=50, checkpoint_s=0.0, report=stop)
    with pytest.raises(ConfigError, match="--resume: views changed since"):
        replay_to_file([Short, LineTrips], log, spine, out, resume=True)
    rides(401, seed=3).write_parquet(log)
    with pytest.raises(ConfigError, match="--resume: events changed since"):
        replay_to_file([Short], log, spine, out, resume=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda log, spine: (log, spine.with_name("none.parquet")), SourceError, "none.parquet does not exist"),
        (lambda log, spine: (log.with_name("none.parquet"), spine), SourceError, "none.parquet does not exist"),
        (lambda log, spine: (spine, spine), SchemaError, "spine.parquet: event Ride.ride_id: no such column"),
        (lambda log, spine: (log, log), SpineError, "view short: the spine has no column 'event_time'"),
        (lambda log, spine: (log, []), SourceError, "spine: no files given"),
    ],
)
def test_a_run_that_fails_leaves_nothing(files, change, error, message):
    log, spine, out = files
    log, spine = change(log, spine)
    for workers in by_tier(fast=(1,), whole=(1, 2)):
        with pytest.raises(error, match=message):
            replay_to_file([Short], log, spine, out, workers=workers)
        assert sorted(path.name for path in out.parent.iterdir()) == ["log.parquet", "spine.parquet"]


def test_a_folder_of_somebody_else_is_left_alone(files):
    log, spine, out = files
    place = out.with_name("out.parquet.parts")
    place.mkdir()
    (place / "poem.txt").write_text("so much depends")
    with pytest.raises(ConfigError, match="holds something else"):
        replay_to_file([Short], log, spine, out)
    assert (place / "poem.txt").exists()


PROGRAM = """
import signal, sys
from headrace.history.export import replay_to_file
from tests.features.test_replay import Short

def slow(place, done, total):
    if total is not None:  # else it is still being read
        print(done, flush=True)
        if "killed" in sys.argv and done > 100:
            signal.pause()

if __name__ == "__main__":
    log, spine, out = sys.argv[1:4]
    options = {"resume": "resume" in sys.argv, "workers": int(sys.argv[4])}
    replay_to_file([Short], log, spine, out, chunk_rows=20, checkpoint_s=0.0, report=slow, **options)
"""


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_killed_runs_are_taken_up(files, repo, tmp_path, workers):
    """SIGKILL again and again; workers die with their parent, so that the next run finds the parts free."""
    log, spine, out = files
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [tmp_path / "program.py", log, spine, out, workers, "resume"]
    for _ in range(3 - int(workers)):
        process = Forked(
            [*command, "killed"],
            cwd=repo,
            env={**os.environ, "PYTHONPATH": str(repo)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert any(int(line) > 100 for line in process.stdout)
        helpers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert psutil.wait_procs(helpers, timeout=60)[1] == []
        assert not out.exists()
    parts = out.with_name("out.parquet.parts")
    done = sum(Progress.load(folder).cut_us is not None for folder in parts.iterdir() if folder.is_dir())
    assert done or workers == "2"
    run(command, cwd=repo, env={**os.environ, "PYTHONPATH": str(repo)}, check=True)
    assert_frame_equal(pl.read_parquet(out), wanted([Short], log, spine), rel_tol=1e-9, categorical_as_str=True)


def worker_processes():
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if "spawn_main" in " ".join(child.cmdline()):
                yield child


@pytest.mark.slow
def test_a_worker_that_dies_is_one_error_and_the_run_goes_on(files):
    log, spine, out = files

    def kill(place, done, total):
        if total is not None:
            for worker in worker_processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()

    options = {"chunk_rows": 5, "checkpoint_s": 0.0, "workers": 2}
    with pytest.raises(HeadraceError, match="a worker died.*--resume"):
        replay_to_file([Short], log, spine, out, report=kill, **options)
    assert psutil.wait_procs(list(worker_processes()), timeout=60)[1] == []
    replay_to_file([Short], log, spine, out, resume=True, chunk_rows=50)
    assert_frame_equal(pl.read_parquet(out), wanted([Short], log, spine), rel_tol=1e-9, categorical_as_str=True)
