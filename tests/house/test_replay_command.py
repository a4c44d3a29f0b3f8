"""`headrace replay`: real processes on real files, an archive and a real broker."""

import signal

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Producer
from polars.testing import assert_frame_equal

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace.history.replay import replay
from headrace.local import EmbeddedBroker
from headrace.pipelines import Archiver, EventBatch, TopicWriter, create_topics
from pipelines.demo import load
from schemas.retail import Engagement
from tests.house.test_view_commands import ITEMS, VIEW, headrace, start


@pytest.fixture
def log(tmp_path):
    """The first 20,000 lines of the log, in two files, and a spine of every seventh, in no order."""
    frame = load()[:20_000]
    frame[:15_000].write_parquet(tmp_path / "a.parquet")
    frame[15_000:].write_parquet(tmp_path / "b.parquet")
    rows = frame.select("customer_id", "item_id", "event_time")[::7].sample(fraction=1.0, shuffle=True, seed=1)
    rows.write_parquet(tmp_path / "spine.parquet")
    return frame


def wanted(tmp_path, frame):
    return replay([CustomerActivity, ItemActivity], frame, pl.read_parquet(tmp_path / "spine.parquet"))


def call(tmp_path, *events):
    urls = [word for url in events for word in ("--events", url)]
    place = ("--spine", str(tmp_path / "spine.parquet"), "--out", str(tmp_path / "out.parquet"))
    return "replay", VIEW, ITEMS, *urls, *place


@pytest.mark.slow
def test_a_glob_in_two_processes_within_a_small_budget(repo, log, tmp_path):
    options = ("--workers", "2", "--memory-rows", "4000")
    code, out, words = headrace(repo, *call(tmp_path, f"{tmp_path}/[ab].parquet"), *options)
    assert (code, out) == (0, ""), words
    assert "2,858 rows" in words
    assert_frame_equal(pl.read_parquet(tmp_path / "out.parquet"), wanted(tmp_path, log), rel_tol=1e-9)


def test_a_topic_and_a_file_are_one_log(repo, log, tmp_path):
    """What the topic has at the start is read once; a bad payload is left out and told."""
    with EmbeddedBroker(tmp_path / "broker") as server:
        create_topics(server.bootstrap, {"engagements": 2})
        writer = TopicWriter(server.bootstrap, Engagement)
        writer.write(log[:15_000])
        writer.flush()
        producer = Producer({"bootstrap.servers": server.bootstrap})
        producer.produce("engagements", b"no event")
        assert producer.flush(60) == 0
        urls = (f"kafka://{server.bootstrap}", f"Engagement={tmp_path}/b.parquet")
        code, out, words = headrace(repo, *call(tmp_path, *urls))
    assert (code, out) == (0, ""), words
    assert "1 events of the topics are bad, and left out" in words
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert_frame_equal(found, wanted(tmp_path, log), rel_tol=1e-9)
    assert sorted(path.stem for path in tmp_path.glob("out*")) == ["out"]


def test_a_topic_and_its_archive_are_one_log(repo, log, tmp_path):
    """
    archive   |0 ..... 10,000|
    topic     |0 ..................... 15,000|        what the archive holds of the topic is read once
    """
    archiver = Archiver(tmp_path / "archive")
    archiver.apply(EventBatch(Engagement, "engagements/0", np.arange(10_000), 10_000, log[:10_000], None, 0))
    archiver.finish()
    with EmbeddedBroker(tmp_path / "broker") as server:
        create_topics(server.bootstrap, {"engagements": 1})
        writer = TopicWriter(server.bootstrap, Engagement)
        writer.write(log[:15_000])
        writer.flush()
        urls = (f"Engagement={tmp_path}/archive", f"kafka://{server.bootstrap}")
        code, out, words = headrace(repo, *call(tmp_path, *urls))
    assert (code, out) == (0, ""), words
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert_frame_equal(found, wanted(tmp_path, log[:15_000]), rel_tol=1e-9)


def test_a_bar_tells_rates_and_a_killed_run_is_taken_up(repo, log, tmp_path):
    """The bar is for terminals: without one there are only the last words."""
    arguments = (*call(tmp_path, f"{tmp_path}/[ab].parquet"), "--checkpoint", "0", "--memory-rows", "4000")
    parts = tmp_path / "out.parquet.parts"
    for _ in range(10):
        process = start(repo, *arguments, FORCE_COLOR="1", TTY_INTERACTIVE="1")
        while process.poll() is None and not list(parts.glob("*/progress.json")):
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if parts.is_dir():
            break
        (tmp_path / "out.parquet").unlink()  # it was through before the kill, as this process had to wait for its turn
    assert parts.is_dir()
    code, _, words = headrace(repo, *arguments)
    assert code == 1
    assert "--resume goes on; or delete it" in words
    code, _, words = headrace(repo, *arguments, "--resume", FORCE_COLOR="1", TTY_INTERACTIVE="1")
    assert code == 0, words
    assert "rows/s" in words
    assert not parts.exists()
    assert_frame_equal(pl.read_parquet(tmp_path / "out.parquet"), wanted(tmp_path, log), rel_tol=1e-9)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("nowhere.parquet", "file nowhere.parquet does not exist"),
        ("data/*.nothing", "no file matches data/*.nothing"),
        ("kafka://127.0.0.1:1?speed=2", "unknown speed"),
        ("s4://bucket/log.parquet", "s4://bucket/log.parquet cannot be read"),
    ],
)
def test_mistakes_are_one_line(repo, log, tmp_path, events, message):
    code, out, words = headrace(repo, *call(tmp_path, events))
    assert (code, out) == (1, "")
    assert message in words
    assert "Traceback" not in words
    assert not (tmp_path / "out.parquet.parts").exists()
