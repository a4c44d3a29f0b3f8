"""`materialize`, `backfill`, `verify`: real processes on real files, a real store and a real broker."""

import contextlib
import functools
import signal
import time

import numpy as np
import orjson
import pytest
import redis

from features.customer import CustomerActivity
from headrace.features import OnlineStore, plan_of
from headrace.features.store.fences import ShardWrite
from headrace.local import EmbeddedBroker
from headrace.pipelines import EventBatch, ShardSet, TopicWriter, create_topics
from pipelines.demo import load
from schemas.retail import Engagement
from tests.house import commands
from tests.house.commands import start

VIEW = "features.customer:CustomerActivity"
ITEMS = "features.item:ItemActivity"


def headrace(repo, *arguments, **environment):
    ran = commands.headrace(*arguments, cwd=repo, **environment)
    return ran.code, ran.out, ran.err


@pytest.fixture
def log(tmp_path):
    """The first 20,000 lines of the log, in two files."""
    frame = load()[:20_000]
    frame[:15_000].write_parquet(tmp_path / "a.parquet")
    frame[15_000:].write_parquet(tmp_path / "b.parquet")
    return frame


@pytest.fixture
def own_broker(tmp_path):
    """Bootstrap address of a broker on which no other test writes engagements."""
    with EmbeddedBroker(tmp_path / "broker") as server:
        yield server.bootstrap


def bought(store, log):
    newest = log["event_time"].max()
    customers = log.select("customer_id").drop_nulls().unique()
    return store.read(CustomerActivity, customers, newest)["bought_30d"].sum()


def test_files_are_materialised_verified_and_a_difference_is_found(repo, redis_url, log, tmp_path):
    """Then a record is lost: `verify` names the view, the features and the key, and exits with 1."""
    events, place = ("--events", str(tmp_path / "*.parquet")), ("--store", redis_url)
    letters = {"HEADRACE_DEAD_LETTER_DIR": str(tmp_path / "letters")}
    code, out, words = headrace(repo, "materialize", VIEW, ITEMS, *events, *place, "--workers", "2", **letters)
    assert (code, out) == (0, ""), words
    assert "customer_activity, item_activity" in words
    code, out, words = headrace(repo, "verify", VIEW, ITEMS, *events, *place, "--json", **letters)
    assert code == 0, words
    found = orjson.loads(out)
    assert [view["view"] for view in found] == ["customer_activity", "item_activity"]
    assert [view["rows"] for view in found] == [log["customer_id"].count(), log.height]
    for view in found:
        assert view["entities"] > 0 == view["waiting"] == view["mismatches"]
        assert sum(view["offsets"].values()) == log.height
        assert {row["checked"] for row in view["features"]} == {view["entities"]}
    with OnlineStore.open(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        assert bought(store, log) > 0
        key = next(key for key in client.scan_iter("hr:*customer_activity*") if not key.endswith(b"!fence"))
        client.delete(key)
    code, out, words = headrace(repo, "verify", VIEW, *events, *place, **letters)
    assert code == 1
    assert "bought_30d" in out
    assert f"key {key.decode().split(':')[-1]}: stored missing" in words
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    code, out, words = headrace(repo, "verify", VIEW, *events, *place, **letters)
    assert (code, out) == (1, "")
    assert "the store has never read engagements/a.parquet@" in words
    assert "it has read nothing at all" in words


def test_backfill_builds_a_view_and_says_so(repo, redis_url, log, tmp_path):
    (tmp_path / "ends.json").write_text('{"engagements/0": 20000}')
    arguments = ("backfill", VIEW, "--events", str(tmp_path / "*.parquet"), "--store", redis_url, "--json")
    letters = {"HEADRACE_DEAD_LETTER_DIR": str(tmp_path / "letters")}
    code, out, words = headrace(repo, *arguments, "--handover", str(tmp_path / "ends.json"), **letters)
    assert code == 0, words
    [row] = orjson.loads(out)
    assert row["view"] == "customer_activity"
    assert row["after"] == plan_of(CustomerActivity).fingerprint
    assert row["records"] == log["customer_id"].drop_nulls().n_unique()
    assert row["handed_over"] == {"engagements/0": 20_000}
    with OnlineStore.open(redis_url) as store:
        assert bought(store, log) > 0
        fences = store.fences(plan_of(CustomerActivity), range(store.shards))
        assert {fence.offsets["engagements/0"] for fence in fences.values()} == {20_000}
    (tmp_path / "ends.json").write_text("[]")
    code, _, words = headrace(repo, *arguments, "--handover", str(tmp_path / "ends.json"), **letters)
    assert code == 1
    assert "write a JSON object" in words
    code, out, words = headrace(repo, *arguments, **letters)
    assert (code, out) == (1, "")
    assert words.startswith("error: plain files do not say up to which offset of topic 'engagements' they reach")


def test_a_topic_is_followed_until_sigterm_and_taken_up_again(repo, redis_url, own_broker, log, tmp_path):
    create_topics(own_broker, {"engagements": 2})
    writer = TopicWriter(own_broker, Engagement)
    writer.write(log[:5_000])
    writer.flush()
    arguments = ("materialize", VIEW, "--events", f"kafka://{own_broker}", "--store", redis_url)
    letters = {"HEADRACE_DEAD_LETTER_DIR": str(tmp_path / "letters")}
    process = start(repo, *arguments, **letters)
    with OnlineStore.open(redis_url) as store:
        applied = 0
        deadline = time.monotonic() + 60
        while applied < 5_000 and time.monotonic() < deadline:
            applied = sum(store.fence(plan_of(CustomerActivity), 0).offsets.values())
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=90)
        assert (process.returncode, applied) == (0, 5_000), words
        writer.write(log[5_000:])
        writer.flush()
        code, _, words = headrace(repo, *arguments, "--until-end", **letters)
        assert code == 0, words
        assert bought(store, log) > 0
    code, out, words = headrace(
        repo, "verify", VIEW, "--events", f"kafka://{own_broker}", "--store", redis_url, **letters
    )
    assert code == 0, (out, words)
    assert f"{log['customer_id'].count():,} rows replayed" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("materialize", "features.customer:Nobody", "--events", "x.parquet"), "has no 'Nobody'"),
        (("materialize", VIEW, "--events", "nowhere.parquet"), "nowhere.parquet does not exist"),
        (("materialize", VIEW, "--events", "nowhere.parquet", "--workers", "2"), "nowhere.parquet does not exist"),
        (("materialize", VIEW, "--events", "{tmp}/damaged.parquet"), "damaged.parquet cannot be read"),
        (("materialize", VIEW, "--events", "{tmp}/other.csv", "--workers", "2"), "Engagement.event_id: no such column"),
        (("materialize", VIEW, "--events", "kafka://{broker}"), "has no topic 'engagements'"),
        (("verify", VIEW, "--events", "kafka://127.0.0.1:1?speed=2"), "unknown speed"),
        (("backfill", VIEW, "--events", "data/*.nothing"), "no file matches"),
    ],
)
def test_mistakes_are_one_line(repo, redis_url, tmp_path, arguments, message):
    """And nothing else: not a word of the engine beneath, whose steps fail in the middle of a flow."""
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with contextlib.ExitStack() as stack:
        filled = {"{tmp}": str(tmp_path)}
        if any("{broker}" in word for word in arguments):
            filled["{broker}"] = stack.enter_context(EmbeddedBroker(tmp_path / "broker")).bootstrap
        words = [functools.reduce(lambda text, pair: text.replace(*pair), filled.items(), word) for word in arguments]
        code, out, told = headrace(repo, *words, "--store", redis_url)
    assert (code, out) == (1, "")
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told


def test_a_fenced_engine_says_so_in_one_line(repo, redis_url, log, tmp_path):
    """Another one writes one of its shards, which it finds out at a flush, in the middle of the flow."""
    plan = plan_of(CustomerActivity)
    with EmbeddedBroker(tmp_path / "broker", topics={"engagements": 1}) as broker, OnlineStore.open(redis_url) as store:
        writer = TopicWriter(broker.bootstrap, Engagement)
        urls = ("--events", f"kafka://{broker.bootstrap}", "--store", redis_url)
        process = start(repo, "materialize", VIEW, *urls, HEADRACE_DEAD_LETTER_DIR=str(tmp_path / "letters"))
        writer.write(log[:1_000])
        writer.flush()
        deadline = time.monotonic() + 60
        while not (fence := store.fence(plan, 0)).sequence and time.monotonic() < deadline:
            time.sleep(0.05)
        store.flush(plan, [ShardWrite(0, fence.sequence, "another", [], [], {}, fence.writer)])
        writer.write(log[1_000:2_000])
        writer.flush()
        out, told = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    up, error = told.splitlines()
    assert up.startswith("materialize is up: reads topic engagements at "), told
    assert error.startswith("error: view customer_activity"), told


def test_a_store_in_a_folder_keeps_its_data_from_command_to_command(repo, log, tmp_path):
    """embedded://DIR: each command starts the Redis of the folder, and ends it."""
    events = ("--events", str(tmp_path / "*.parquet"))
    letters = {"HEADRACE_DEAD_LETTER_DIR": str(tmp_path / "letters")}
    url = f"embedded://{tmp_path}/redis"
    code, _, words = headrace(repo, "materialize", VIEW, *events, "--store", url, **letters)
    assert code == 0, words
    code, out, words = headrace(repo, "verify", VIEW, *events, "--json", HEADRACE_REDIS_URL=url, **letters)
    assert code == 0, words
    assert orjson.loads(out)[0]["rows"] == log["customer_id"].count()
    code, out, words = headrace(repo, "get", VIEW, str(log["customer_id"].drop_nulls()[0]), "--store", url, "--json")
    assert (code, len(orjson.loads(out))) == (0, 1), words
    code, out, words = headrace(repo, "materialize", VIEW, *events, "--store", "embedded://")
    assert (code, out) == (1, "")
    assert words.startswith("error: embedded:// names no folder"), words


def test_old_versions_are_listed_and_dropped(repo, redis_url, log, tmp_path):
    """The active one is refused, and one that is not there is told with those that are."""
    plan = plan_of(CustomerActivity)
    with OnlineStore.open(redis_url) as store:
        rows = EventBatch(Engagement, "engagements/0", np.arange(100), 100, log[:100], None, 1)
        shards = ShardSet(plan, store, range(32))
        shards.apply(rows)
        shards.flush()
        with redis.Redis.from_url(redis_url) as client:
            for key in list(client.scan_iter("hr:{*}:customer_activity:*")):
                client.copy(key, key.replace(plan.version.encode(), b"01234567"))
    place = ("--store", redis_url)
    code, out, words = headrace(repo, "features", "versions", VIEW, *place, "--json")
    assert code == 0, words
    found = orjson.loads(out)
    assert [(one["version"], one["is_active"], one["is_declared"]) for one in found] == [
        (plan.version, True, True),
        ("01234567", False, False),
    ]
    assert found[0]["records"] == found[1]["records"] == log[:100]["customer_id"].drop_nulls().n_unique()
    for version, message in (
        (plan.version, "is active, readers get it"),
        ("fedcba98", f"it holds {plan.version}, 0123"),
    ):
        code, out, words = headrace(repo, "features", "drop", VIEW, version, *place)
        assert (code, out) == (1, "")
        assert message in words
    code, _, words = headrace(repo, "features", "drop", VIEW, "01234567", *place)
    assert code == 0
    assert f"{found[1]['records'] + 32:,} keys deleted" in words
    code, out, words = headrace(repo, "features", "versions", VIEW, *place, "--json")
    assert orjson.loads(out) == found[:1]
