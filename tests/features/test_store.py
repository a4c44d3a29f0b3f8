"""The online store: all or nothing a shard, fences that catch everyone else, errors in our words."""

import inspect
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hiredis
import numpy as np
import pytest
import redis.exceptions as theirs

from headrace import Count, FeatureView
from headrace.errors import FencedError, LayoutError, StoreError, StoreUnavailableError
from headrace.features import plan_of
from headrace.features.keys import NULL_ID, shard_of, texts_of
from headrace.features.state.slab import Slab
from headrace.features.store import fences
from headrace.features.store.fences import Fence, ShardWrite
from headrace.features.store.link import RedisLink
from headrace.features.store.reader import ViewRead
from headrace.features.store.store import OnlineStore
from headrace.features.store.transactions import Guarded
from headrace.features.store.wire import FIRST_KEYS, PART_KEYS
from headrace.local import EmbeddedRedis, free_port
from tests.faults import Wire
from tests.meters import START_US, BriefLoad, MeterLoad, Reading, log_frame

PLAN = plan_of(MeterLoad)


class KeptLoad(FeatureView, source=Reading, entity="meter", ttl="1h"):
    """Kept for an hour."""

    readings = Count(windows="lifetime")


@pytest.fixture
def store(store_url):
    with OnlineStore.open(store_url) as opened:
        yield opened


def write(shard, sequence, writer="a", *, texts=(), blobs=(), offsets=None, expected_writer=None):
    return ShardWrite(shard, sequence, writer, texts, blobs, offsets or {}, expected_writer)


def records_of(shard, count=3):
    """Keys of `shard` with made-up records."""
    ids = np.arange(5_000 + 64 * count)
    texts = [b"%d" % i for i in ids[shard_of(ids, 32) == shard][:count]]
    return texts, [b"record-" + text for text in texts]


def test_a_flush_writes_records_offsets_and_fence_together(store):
    """What was flushed is what `records`, `fence`, `snapshot` and `scan` give."""
    texts, blobs = records_of(7)
    store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs, offsets={"readings/0": 5, "readings/1": 9})])
    assert store.fence(PLAN, 7) == Fence(1, "a", {"readings/0": 5, "readings/1": 9})
    assert store.records(PLAN, np.array([int(text) for text in texts]), texts) == blobs
    offsets, found = store.snapshot(PLAN, 7, [*texts, b"none"])
    assert (offsets, found) == ({"readings/0": 5, "readings/1": 9}, [*blobs, None])
    assert dict(store.scan(PLAN)) == dict(zip(texts, blobs, strict=True))
    report = store.flush(PLAN, [write(7, 1, offsets={"readings/1": 10})])
    assert (report.sequences, report.repeated) == ({7: 2}, frozenset())
    assert store.fence(PLAN, 7) == Fence(2, "a", {"readings/0": 5, "readings/1": 10})


def test_keys_are_as_documented_and_share_their_shards_hash_tag(store, store_url):
    """Other tools may rely on the key names; a cluster needs the hash tag."""
    texts, blobs = records_of(7, 1)
    store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs)])
    with RedisLink(store_url) as link:
        prefix = f"hr:{{7}}:meter_load:{PLAN.version}"
        assert set(link.client.keys("hr:{*")) == {f"{prefix}!fence".encode(), f"{prefix}:".encode() + texts[0]}


@pytest.mark.parametrize(
    ("sequence", "writer", "expected_writer"),
    [(0, "b", None), (1, "b", None), (3, "a", None), (2, "b", "c"), (7, "a", None), (2, "b", "")],
)
def test_any_other_fence_than_expected_refuses_the_write(store, sequence, writer, expected_writer):
    """An older or newer sequence, or another writer at the same one; the error names view, shard and both sides."""
    texts, blobs = records_of(7)
    store.flush(PLAN, [write(7, 0), write(8, 0)])
    store.flush(PLAN, [write(7, 1), write(8, 1)])
    with pytest.raises(FencedError, match=rf"meter_load · shard 7: expected sequence {sequence} .* found 2 of a\."):
        store.flush(PLAN, [write(7, sequence, writer, texts=texts, blobs=blobs, expected_writer=expected_writer)])
    assert store.fence(PLAN, 7) == Fence(2, "a", {})
    assert dict(store.scan(PLAN)) == {}


def test_a_new_writer_takes_over_from_the_one_it_saw(store):
    """The first flush of a new engine expects its predecessor's token; the predecessor is fenced from then on."""
    store.flush(PLAN, [write(7, 0, "old")])
    store.flush(PLAN, [write(7, 1, "new", expected_writer="old")])
    with pytest.raises(FencedError, match="expected sequence 1 of writer old, found 2 of new"):
        store.flush(PLAN, [write(7, 1, "old")])


def test_one_fenced_shard_does_not_undo_the_others(store):
    """Shards are independent: the others of the pipeline are written, the error names the fenced one."""
    store.flush(PLAN, [write(7, 0, "other")])
    with pytest.raises(FencedError, match="shard 7"):
        store.flush(PLAN, [write(6, 0), write(7, 0), write(8, 0)])
    fences = store.fences(PLAN, [6, 7, 8])
    assert [fences[shard].writer for shard in (6, 7, 8)] == ["a", "other", "a"]


def test_the_same_flush_again_is_recognised_and_changes_nothing(store):
    """A retry after a lost reply: same writer, sequence already moved on."""
    texts, blobs = records_of(7)
    store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs, offsets={"readings/0": 5})])
    report = store.flush(PLAN, [write(7, 0, texts=texts, blobs=[b"x"] * 3, offsets={"readings/0": 6}), write(8, 0)])
    assert (report.sequences, report.repeated) == ({7: 1, 8: 1}, frozenset({7}))
    assert store.fence(PLAN, 7) == Fence(1, "a", {"readings/0": 5})
    assert [blob for _, blob in sorted(store.scan(PLAN))] == sorted(blobs)


def test_a_flush_works_after_redis_forgot_its_scripts(store, store_url):
    """SCRIPT FLUSH, or a failover to a replica, costs one more round trip."""
    store.flush(PLAN, [write(7, 0)])
    with RedisLink(store_url) as link:
        link.client.script_flush()
    assert store.flush(PLAN, [write(7, 1), write(8, 0)]).sequences == {7: 2, 8: 1}


def test_thousands_of_partitions_fit_a_flush(store):
    """Lua's unpack is limited to some 8,000 values."""
    offsets = {f"readings/{i}": i for i in range(9_001)}
    store.flush(PLAN, [write(7, 0, offsets=offsets)])
    assert store.fence(PLAN, 7).offsets == offsets


def test_records_of_a_view_with_ttl_expire(store, store_url):
    """The record gets the ttl, the fence none."""
    plan = plan_of(KeptLoad)
    store.flush(plan, [write(7, 0, texts=[b"1"], blobs=[b"x"])])
    with RedisLink(store_url) as link:
        prefix = f"hr:{{7}}:kept_load:{plan.version}"
        assert 0 < link.client.pttl(f"{prefix}:1") <= 3_600_000
        assert link.client.pttl(f"{prefix}!fence") == -1


def test_redis_out_of_memory_writes_nothing_of_a_shard(store, store_url):
    """Refused before the first write: fence and records stay as they were, and the message says what to do."""
    texts, blobs = records_of(7)
    with RedisLink(store_url) as link:
        link.client.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(StoreError, match="raise its maxmemory"):
                store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs)])
        finally:
            link.client.config_set("maxmemory", "0")
    assert store.fence(PLAN, 7) == Fence()
    assert store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs)]).repeated == frozenset()


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("fence", "sequence", b"abc"),
        ("fence", "writer", b"\xff"),
        ("fence", "o:readings/0", b"1.5"),
        ("hr:meta", "shards", b"many"),
        ("hr:views", "meter_load", b"\xff"),
    ],
)
def test_what_another_program_wrote_is_named(store, store_url, key, field, value):
    """By whoever reads it, and a flush writes nothing then."""
    texts, blobs = records_of(7)
    store.flush(PLAN, [write(7, 0)])
    with RedisLink(store_url) as link:
        fence = fences.fence_key(f"hr:{{7}}:meter_load:{PLAN.version}".encode())
        link.client.hset(fence if key == "fence" else key, field, value)

    def look():
        with OnlineStore.open(store_url) as again:
            again.active("meter_load")
            again.fence(PLAN, 7)

    with pytest.raises(StoreError, match=r"not as Headrace writes it .*; use a namespace of its own"):
        look()
    if field in {"sequence", "writer"}:
        with pytest.raises(StoreError):
            store.flush(PLAN, [write(7, 1, texts=texts, blobs=blobs)])
        assert dict(store.scan(PLAN)) == {}


def test_the_shard_count_of_a_namespace_is_fixed(store_url):
    """It decides where records live, so another count is refused; another namespace is free."""
    with OnlineStore.open(store_url, shards=8):
        pass
    with pytest.raises(StoreError, match=r"shards = 8, not 16; open it with 8"):
        OnlineStore.open(store_url, shards=16)
    with OnlineStore.open(store_url, shards=16, namespace="other") as other:
        assert other.shards == 16


@pytest.mark.parametrize("settings", [{"namespace": "a:b"}, {"namespace": "{a}"}, {"shards": 0}, {"shards": 20_000}])
def test_settings_that_would_break_keys_are_refused(store_url, settings):
    """Colons and braces belong to the key layout."""
    with pytest.raises(StoreError, match="use"):
        OnlineStore.open(store_url, **settings)


def test_a_store_that_is_away_is_named_without_its_password():
    """The message says where, not how to get in."""
    port = free_port()
    with pytest.raises(StoreUnavailableError, match="check that Redis runs there") as caught:
        OnlineStore.open(f"redis://me:secret@127.0.0.1:{port}/0")
    assert "secret" not in str(caught.value)
    assert f"me:***@127.0.0.1:{port}" in str(caught.value)
    with pytest.raises(StoreError, match="store URL 'http://host'"):
        OnlineStore.open("http://host")


def test_every_error_of_redis_py_becomes_one_of_ours(store_url):
    """A user never needs the library beneath; what time heals is StoreUnavailableError."""
    roots = (theirs.RedisError, theirs.RedisClusterException)
    kinds = [kind for _, kind in inspect.getmembers(theirs, inspect.isclass) if issubclass(kind, roots)]
    assert len(kinds) > 20
    away = set()
    with RedisLink(store_url) as link:
        for kind in kinds:
            error = kind.__new__(kind)
            Exception.__init__(error, "what happened")
            with pytest.raises(StoreError, match="trying: Redis at") as caught, link.errors("trying"):
                raise error
            away |= {kind.__name__} if isinstance(caught.value, StoreUnavailableError) else set()
    assert {"ConnectionError", "TimeoutError", "BusyLoadingError", "ReadOnlyError", "ClusterDownError"} <= away
    assert not {"AuthenticationError", "NoPermissionError", "OutOfMemoryError", "DataError", "ResponseError"} & away


@pytest.mark.parametrize(
    ("reply", "away", "advice"),
    [
        (
            "Error running script: -OOM command not allowed when used memory > 'maxmemory'.",
            False,
            "raise its maxmemory",
        ),
        (
            "-NOPERM this user has no permissions to run the 'set' command",
            False,
            "needs @read, @write, @transaction and @scripting",
        ),
        ("-READONLY You can't write against a read only replica.", True, "a failover is under way"),
        ("MISCONF Errors writing to the AOF file: No space left on device", True, "free space"),
        ("BUSY Redis is busy running a script.", True, "SCRIPT KILL"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False, "Headrace's own"),
    ],
)
def test_replies_that_scripts_quote_are_told_apart(store_url, reply, away, advice):
    """A script's error is a plain ResponseError; what time heals is still StoreUnavailableError."""
    with RedisLink(store_url) as link:
        with pytest.raises(StoreError, match=advice) as caught, link.errors("flush"):
            raise theirs.ResponseError(reply)
        assert isinstance(caught.value, StoreUnavailableError) == away


def test_the_first_version_of_a_view_is_activated_a_changed_one_is_not(store):
    """Readers of the changed view are told to backfill until it is activated; then readers of the old one are."""
    changed = plan_of(type("MeterLoad", (MeterLoad.__base__,), CHANGED, source=Reading, entity="meter"))
    assert store.active("meter_load") is None
    assert store.register(PLAN)
    assert not store.register(changed)
    assert store.active("meter_load") == PLAN.fingerprint
    ids, texts = np.array([1]), [b"1"]
    assert not store.answer(PLAN, ids, texts, START_US).found[0]
    with pytest.raises(LayoutError, match=rf"view meter_load: readers get version {PLAN.fingerprint}.*backfill"):
        store.answer(changed, ids, texts, START_US)
    store.activate(changed)
    assert not store.answer(changed, ids, texts, START_US).found[0]
    with pytest.raises(LayoutError, match="meter_load"):
        store.answer(PLAN, ids, texts, START_US)


CHANGED = {"__module__": MeterLoad.__module__, "readings": MeterLoad.readings}


def test_an_inactive_version_can_be_dropped_the_active_one_cannot(store):
    """Dropping takes records and fences of that version and nothing else."""
    store.register(PLAN)
    other = plan_of(BriefLoad)
    for plan in (PLAN, other):
        store.flush(plan, [write(7, 0, texts=[b"1", b"2"], blobs=[b"x", b"y"])])
    with pytest.raises(StoreError, match="is active"):
        store.drop("meter_load", PLAN.fingerprint)
    assert store.drop("brief_load", other.fingerprint) == 3
    assert store.fence(other, 7) == Fence()
    assert len(dict(store.scan(PLAN))) == 2


def test_many_threads_read_what_was_written(store):
    """One store serves a process: answers of concurrent readers are each right."""
    rows = PLAN.rows(Reading, log_frame(2_000).drop("_partition", "_offset"))
    slab = Slab(PLAN)
    slab.update(rows)
    ids = np.unique(rows.ids)
    at = slab.locate(ids)
    texts, shards = slab.texts(at), shard_of(ids, 32)
    for shard in np.unique(shards):
        mine = np.flatnonzero(shards == shard)
        blobs = slab.pack(at[mine])
        store.flush(PLAN, [write(int(shard), 0, texts=[texts[i] for i in mine], blobs=blobs)])
    now_us = int(rows.time_us.max()) + 1
    expected = slab.read(at, now_us).columns["watts_lifetime"]
    barrier = threading.Barrier(8)

    def read(seed):
        pick = np.random.default_rng(seed).permutation(ids.size)
        barrier.wait()
        answer = store.answer(PLAN, ids[pick], [texts[i] for i in pick], now_us)
        return np.array_equal(answer.columns["watts_lifetime"], expected[pick])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.parametrize("lost", [False, True])
def test_a_large_read_comes_in_parts_also_when_the_wire_breaks(redis_url, lost):
    """More keys than one MGET takes, null keys among them; a reply that is lost is asked for again."""
    slab = Slab(PLAN)
    slab.update(PLAN.rows(Reading, log_frame(200).drop("_partition", "_offset")))
    row = slab.rows()[:1]
    known = slab.ids(row)
    with OnlineStore.open(redis_url) as store:
        store.flush(PLAN, [write(int(shard_of(known, 32)[0]), 0, texts=slab.texts(row), blobs=slab.pack(row))])
    ids = np.arange(10_000, 10_000 + 2 * PART_KEYS + 7)
    first = FIRST_KEYS[0]
    ids[[0, first - 1, first, PART_KEYS - 1, PART_KEYS, -1]] = known[0]
    ids[[1, first + 1, PART_KEYS + 1]] = NULL_ID
    with Wire(redis_url) as wire, OnlineStore.open(wire.url) as reader:
        reader.ping()
        reader.require_active(PLAN)
        if lost:
            wire.lose_next_reply()
        answer = reader.answer(PLAN, ids, texts_of(ids, None), START_US)
        assert wire.lost_replies == lost
    assert np.flatnonzero(answer.found).tolist() == [0, first - 1, first, PART_KEYS - 1, PART_KEYS, len(ids) - 1]


def test_several_views_are_read_in_one_round_trip(store, store_url):
    """Each read of a batch, at a moment of its own or of each entity, is answered as it is alone."""
    slab = Slab(PLAN)
    slab.update(PLAN.rows(Reading, log_frame(200).drop("_partition", "_offset")))
    rows = slab.rows()[:6]
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    for shard in np.unique(shard_of(ids, 32)).tolist():
        mine = np.flatnonzero(shard_of(ids, 32) == shard).tolist()
        store.flush(PLAN, [write(shard, 0, texts=[texts[i] for i in mine], blobs=[blobs[i] for i in mine])])
    moments = START_US + np.arange(6) * 3_600_000_000
    reads = [
        ViewRead(PLAN, ids, texts, moments),
        ViewRead(PLAN, np.array([NULL_ID, ids[0]]), [b"", texts[0]], START_US),
    ]
    by_entity, with_null = store.answers(reads, deadline_s=time.monotonic() + 30)
    assert with_null.found.tolist() == [False, True]
    for i, moment in enumerate(moments.tolist()):
        alone = store.answer(PLAN, ids[i : i + 1], texts[i : i + 1], moment)
        assert alone.to_polars().row(0) == by_entity.to_polars().row(i)
        assert (alone.age_us[0], alone.ahead[0]) == (by_entity.age_us[i], by_entity.ahead[i])


@pytest.mark.parametrize("idle_s", [0.0, 1.1], ids=["the records", "the active version"])
def test_a_redis_that_hangs_is_left_at_the_deadline(tmp_path, idle_s):
    """The process is stopped: a read with a deadline ends in time, and the next one works once Redis goes on.

    After a second the view's active version is asked for before its records.
    """
    with EmbeddedRedis(tmp_path) as redis, OnlineStore.open(redis.url) as store:
        read = ViewRead(PLAN, np.array([7]), [b"7"], START_US)
        assert not store.answers([read])[0].found[0]
        time.sleep(idle_s)
        pid = redis._process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            before_s = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                store.answers([read], deadline_s=before_s + 0.2)
            assert time.monotonic() - before_s < 2.0
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not store.answers([read])[0].found[0]


def test_commands_are_carried_out_only_against_the_guards_that_were_accepted(redis_url):
    """One guard changes after the answer, one is as wanted, one is refused; none is in the way of another."""
    with RedisLink(redis_url) as link:

        def overtaken(held):
            assert held == [[None], [None]]
            link.client.hset("guard", "sequence", "2")
            return True

        def commands(number):
            return [hiredis.pack_command(("SET", "record", number))], 1

        calls = [
            Guarded([b"other", b"guard"], ("sequence",), accepts, partial(commands, number))
            for number, accepts in enumerate((overtaken, lambda held: held[1] == [b"2"], lambda _held: False))
        ]
        held = [[None], [b"2"]]
        assert link.guarded("test", calls) == [([[None], [None]], False), (held, True), (held, False)]
        assert link.client.get("record") == b"1"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_call_is_carried_out_though_redis_died_while_one_was_drawn(tmp_path, number):
    """The connection breaks while an answer is waited for, and the next call is there already."""
    with EmbeddedRedis(tmp_path, aof=False) as server, RedisLink(server.url) as link:
        first = server.pid

        def commands(index):
            if index == number - 1 and server.pid == first:
                os.kill(first, signal.SIGSTOP)  # all before this call is answered, and nothing of it will be
            return [hiredis.pack_command(("SET", f"record {index}", index))], 1

        def calls():
            for index in range(4):
                if index == number:
                    server.kill()
                    server.start()
                yield Guarded([b"guard %d" % index], ("sequence",), lambda _: True, partial(commands, index))

        assert link.guarded("test", calls()) == [([[None]], True)] * 4
        assert link.mget([f"record {index}".encode() for index in range(4)]) == [b"0", b"1", b"2", b"3"]


def test_a_fence_that_moves_between_question_and_write_is_told_as_it_is(redis_url, monkeypatch):
    """Another engine writes while a flush is under way: it is fenced, and the message names the other."""
    with OnlineStore.open(redis_url) as store:
        late, early = write(3, 0, writer="late"), write(3, 0, writer="early")
        guarded = fences.Guarded

        def overtaken(guards, fields, accepts, commands):
            def accepts_late(held):
                monkeypatch.undo()
                store.flush(PLAN, [early])
                return accepts(held)

            return guarded(guards, fields, accepts_late, commands)

        monkeypatch.setattr(fences, "Guarded", overtaken)
        with pytest.raises(FencedError, match="expected sequence 0 of writer nobody, found 1 of early"):
            store.flush(PLAN, [late])


@pytest.mark.parametrize("count", [3, fences.PIECE_MAX + 1, fences.TOGETHER_MAX + 5])
def test_a_fenced_shard_is_not_in_the_way_of_others_in_its_transaction(store, count):
    """Three shards in one flush, the middle one another's: it is named, and the others are written, whole."""
    kept = {shard: records_of(shard, count) for shard in (7, 8, 9)}
    store.flush(PLAN, [write(8, 0, writer="other")])
    with pytest.raises(FencedError, match="shard 8: expected sequence 0 of writer nobody, found 1 of other"):
        store.flush(PLAN, [write(shard, 0, texts=texts, blobs=blobs) for shard, (texts, blobs) in kept.items()])
    written = [pair for shard in (7, 9) for pair in zip(*kept[shard], strict=True)]
    assert dict(store.scan(PLAN)) == dict(written)
    assert [store.fence(PLAN, shard).sequence for shard in (7, 8, 9)] == [1, 1, 1]


def test_records_of_every_length_are_written_as_they_are(store):
    """Empty ones, ones with line ends, ones longer than any buffer; keys are texts of any length."""
    texts = [b"", b"\r\n", "s\u00e9l\u00e8ne".encode(), b"k" * 1_000]
    blobs = [b"", b"$3\r\nfoo\r\n", bytes(range(256)) * 400, b"x"]
    store.flush(PLAN, [write(7, 0, texts=texts, blobs=blobs)])
    assert dict(store.scan(PLAN)) == dict(zip(texts, blobs, strict=True))


def test_a_health_check_never_comes_between_the_pieces_of_a_flush(redis_url):
    """redis-py would send a PING into the middle of a command that takes longer to make than the URL's interval."""
    texts, _ = records_of(7, fences.PIECE_MAX + 1)
    blobs = [b"%05d" % number * 20 for number in range(len(texts))]

    def slowly(begin, end):
        if begin:
            time.sleep(1.2)
        return blobs[begin:end]

    with OnlineStore.open(f"{redis_url}?health_check_interval=1") as store:
        store.flush(PLAN, [write(7, 0, texts=texts, blobs=slowly)])
        assert dict(store.scan(PLAN)) == dict(zip(texts, blobs, strict=True))
