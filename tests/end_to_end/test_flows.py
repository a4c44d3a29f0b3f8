"""The project's jobs as they are run for real: processes against a real broker and Redis, ended by signals."""

import os
import signal
import socket
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.customer import CustomerActivity
from headrace.features import OnlineStore
from headrace.local import EmbeddedBroker, free_port
from headrace.pipelines import KafkaSource, TopicWriter, create_topics
from headrace.schemas import decode_letter
from headrace.schemas.dead_letters import read as read_letters
from headrace.streams.kafka_writer import MessageProducer
from schemas.retail import Engagement
from tests.forked import Forked

RUNNERS = {
    "headrace": ["-m", "headrace.cli", "run", "pipelines.materialize"],
    "bytewax": ["-m", "bytewax.run", "pipelines.materialize:flow"],
}
WAIT_S = 60.0


@pytest.fixture
def bootstrap(tmp_path):
    """A broker of this test's own: the project's topics have fixed names."""
    with EmbeddedBroker(tmp_path / "broker") as server:
        yield server.bootstrap


@pytest.fixture
def environment(tmp_path, redis_url, bootstrap):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {
        **clean,
        "HEADRACE_REDIS_URL": redis_url,
        "HEADRACE_BROKERS": bootstrap,
        "HEADRACE_DEAD_LETTER_DIR": str(tmp_path / "letters"),
        "HEADRACE_MODEL_DIR": str(tmp_path / "models"),
        "HEADRACE_STATE_DIR": str(tmp_path / "state"),
        "NO_COLOR": "1",
    }


def start(repo: Path, arguments: list[str], environment: dict[str, str]) -> Forked:
    return Forked(arguments, cwd=repo, env=environment, stderr=subprocess.PIPE, text=True)


def purchases(count: int, now: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": [uuid.uuid4().hex for _ in range(count)],
            "event_time": [now - timedelta(seconds=count - i) for i in range(count)],
            "customer_id": [i % 10 for i in range(count)],
            "item_id": [f"ITEM {i % 7}" for i in range(count)],
            "action": "purchase",
            "quantity": 1,
            "unit_price": 2.0,
            "country": "Norway",
            "request_id": None,
        },
        schema_overrides={"event_time": pl.Datetime("us", "UTC"), "quantity": pl.Int64, "request_id": pl.String},
    )


@pytest.mark.parametrize("runner", RUNNERS)
def test_materialize_counts_puts_aside_and_drains(repo, redis_url, bootstrap, environment, tmp_path, runner):
    """Good events are counted once, bad ones become dead letters in both places, SIGTERM ends it with exit code 0."""
    create_topics(bootstrap, {"engagements": 2, "dead-letters": 1})
    now = datetime.now(UTC)
    good = purchases(1_000, now)
    ahead = good[:1].with_columns(pl.lit(now + timedelta(days=3_650)).alias("event_time"))
    outside = good[:1].with_columns(pl.lit(-5.0).alias("unit_price"))
    writer = TopicWriter(bootstrap, Engagement)
    writer.write(pl.concat([good, ahead, outside]))
    writer.flush()
    rubbish = MessageProducer(bootstrap, None)
    rubbish.send("engagements", b"\xffrubbish", "7")
    rubbish.flush()
    process = start(repo, RUNNERS[runner], environment)
    with OnlineStore.open(redis_url) as store:
        deadline = time.monotonic() + WAIT_S
        total = 0
        while total < good.height and time.monotonic() < deadline and process.poll() is None:
            found = store.read(CustomerActivity, list(range(10)), now + timedelta(seconds=1))
            total = found["bought_30d"].sum()
            time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=90)
    assert total == good.height, words
    assert process.returncode == 0, words
    if runner == "headrace":
        written = f"writes views customer_activity, item_activity in {redis_url}"
        assert f"pipelines.materialize is up: reads topic engagements at {bootstrap}; {written}\n" in words
    wanted = {"future", "out_of_range", "undecodable"}
    assert set(read_letters(tmp_path / "letters")["reason"]) == wanted
    source = KafkaSource(bootstrap, ["dead-letters"], until_end=True)
    source.seek({})
    letters = []
    while not source.exhausted:
        letters += [decode_letter(payload) for batch in source.poll() for payload in batch.payloads or []]
    source.close()
    assert {letter.reason for letter in letters} == wanted
    assert {letter.payload for letter in letters if letter.reason == "undecodable"} == {b"\xffrubbish"}


def test_unknown_topic_is_one_clear_error(repo, environment):
    """A job whose topic does not exist says so, says how to create it, and ends with exit code 1."""
    process = start(repo, RUNNERS["headrace"], environment)
    _, words = process.communicate(timeout=90)
    assert process.returncode == 1
    error = [line for line in words.splitlines() if line.startswith("error:")]
    assert len(error) == 1, words
    assert "engagements" in error[0]


def test_serving_on_a_busy_port_is_one_clear_error(repo, environment):
    """`headrace serve` names the port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(repo, ["-m", "headrace.cli", "serve"], {**environment, "HEADRACE_PORT": str(port)})
        _, words = process.communicate(timeout=90)
    assert process.returncode == 1
    assert f"127.0.0.1:{port}" in words
    assert "Traceback" not in words


def test_materialize_without_redis_says_so_and_stops_when_told(repo, environment):
    """A Redis that is away is waited for, said once; the job still ends when it is told to."""
    process = start(
        repo, RUNNERS["headrace"], {**environment, "HEADRACE_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    )
    said = ""
    while "127.0.0.1" not in said:
        line = process.stderr.readline()
        assert line, f"ended without a word about Redis: {said}"
        said += line
    waiting = process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert waiting or process.returncode == 1
