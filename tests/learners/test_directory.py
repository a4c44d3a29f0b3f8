import os
import resource
import shutil
import signal
import threading
import time

import pytest
import redis

from headrace.errors import SnapshotError
from headrace.learners import DeepFM, Follower, Learner, ModelDirectory, OnlineLearner, Scorer, Snapshot
from headrace.learners.publishing import directory
from headrace.local import EmbeddedRedis
from tests.logs import capture_logs
from tests.serving.stage import until
from tests.shelves import SPEC, Shelf, Stream


@pytest.fixture
def snapshot():
    return Snapshot.of(OnlineLearner(Shelf), probe=Stream().batch(8)[0])


def test_versions_grow_and_the_newest_are_kept(tmp_path, snapshot):
    models = ModelDirectory(tmp_path / "models", keep=3)
    assert (models.latest(), models.versions()) == (None, [])
    assert [models.publish(snapshot) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert models.versions() == [3, 4, 5]
    assert models.load(5, Shelf).manifest.version == 5
    assert models.manifest(4).version == 4
    assert Scorer(models.load(4, Shelf), Shelf).version == 4
    with pytest.raises(SnapshotError, match=r"no version 2; there are \[3, 4, 5\]"):
        models.load(2)


def test_what_is_staged_is_not_visible_until_published(tmp_path, snapshot):
    models = ModelDirectory(tmp_path)
    staged = models.stage(snapshot)
    assert models.latest() is None
    models.discard(staged)
    assert list(tmp_path.iterdir()) == []
    assert models.publish(models.stage(snapshot)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v00000001"]


def test_a_second_writer_fails_and_leaves_nothing(tmp_path, snapshot):
    one, other = ModelDirectory(tmp_path), ModelDirectory(tmp_path)
    early, late = one.stage(snapshot), other.stage(snapshot)
    one.publish(early)
    with pytest.raises(SnapshotError, match="another writer"):
        other.publish(late)
    assert [path.name for path in tmp_path.iterdir()] == ["v00000001"]


def test_a_rollback_is_old_content_under_a_new_version(tmp_path, snapshot):
    models = ModelDirectory(tmp_path)
    models.publish(snapshot)
    online = OnlineLearner(Shelf, seed=7)
    models.publish(Snapshot.of(online))
    assert models.rollback(1) == 3
    rolled = models.load(3, Shelf)
    assert rolled.manifest.parent == 2
    assert all((rolled.arrays[name] == array).all() for name, array in snapshot.arrays.items())


def test_a_directory_belongs_to_one_learner(tmp_path, snapshot):
    models = ModelDirectory(tmp_path)
    models.publish(snapshot)
    other = type("Other", (Learner,), {"inputs": SPEC, "model": DeepFM(4)})
    with pytest.raises(SnapshotError, match="of learner 'shelf', not 'other'"):
        models.publish(Snapshot.of(OnlineLearner(other)))


def test_a_follower_gets_the_newest_once(tmp_path, snapshot):
    models = ModelDirectory(tmp_path)
    follower = Follower(models)
    assert follower.poll() is None
    models.publish(snapshot)
    models.publish(snapshot)
    assert follower.poll() == 2
    assert follower.poll(30) is None
    models.publish(snapshot)
    assert next(models.follow(10)) == 3


@pytest.mark.parametrize("with_redis", [False, True])
def test_a_waiting_follower_is_woken(tmp_path, snapshot, with_redis, request):
    url = request.getfixturevalue("redis_url") if with_redis else None
    models = ModelDirectory(tmp_path, url)
    got, stop = [], threading.Event()

    def follow():
        got.extend(models.follow(500, stop.is_set))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        published = ModelDirectory(tmp_path, url).publish(snapshot)
        at = time.monotonic()
        while not got and time.monotonic() - at < 30:
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join()
    assert got == [published]


def test_a_notice_between_two_waits_is_not_lost(tmp_path, snapshot, redis_url):
    models = ModelDirectory(tmp_path, redis_url, stream="hr:gap")
    models.publish(snapshot)
    follower = Follower(models)
    before = follower._last_id
    models.publish(snapshot)
    follower.wait(0.8)
    assert follower._last_id == models.notices.newest_id() != before  # it came; at a time-out the id stays
    began = time.monotonic()
    follower.wait(0.1)
    assert time.monotonic() - began >= 0.09


def test_the_notice_tells_name_version_and_path(tmp_path, snapshot, redis_url):
    ModelDirectory(tmp_path, redis_url, stream="hr:test").publish(snapshot)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        [(_, notice)] = client.xrange("hr:test")
    assert (notice["name"], notice["version"]) == ("shelf", "1")
    assert notice["path"].endswith("v00000001")
    assert int(notice["created"]) > 0


def test_without_redis_at_its_url_publishing_and_following_go_on(tmp_path, snapshot):
    models = ModelDirectory(tmp_path, "redis://127.0.0.1:1/0")
    assert models.publish(snapshot) == 1
    assert Follower(models).poll() == 1
    follower = Follower(models)
    follower.seen = 1
    assert follower.poll(50) is None


# What else lies in the folder, and a folder that cannot be written


@pytest.fixture
def full_disk():
    """No file may grow beyond 1,000 bytes, as on a disk with so much room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, snapshot, full_disk):
    """Nothing is staged, nothing is left; once there is room, the next version is published."""
    models = ModelDirectory(tmp_path)
    for write in (models.stage, models.publish):
        with pytest.raises(SnapshotError, match=r"v00000001.* cannot be written: .*File too large.*; make room"):
            write(snapshot)
        assert list(tmp_path.iterdir()) == []
    full_disk()
    assert models.publish(snapshot) == 1


def test_names_of_another_form_are_no_versions(tmp_path, snapshot):
    """Beyond 64 bits, digits of other scripts, a zero too many: none could be named by its number."""
    models = ModelDirectory(tmp_path)
    for name in (
        "v99999999999999999999",
        "v\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0669",
        "v000000009",
        "v12",
        "v00000003.bak",
    ):
        (tmp_path / name).mkdir()
    assert models.versions() == []
    assert [models.publish(snapshot), models.publish(snapshot)] == [1, 2]


@pytest.mark.parametrize("thing", ["empty folder", "file", "manifest of nothing", "link to nowhere", "fifo"])
def test_a_newest_version_that_is_broken_keeps_nobody_from_publishing(tmp_path, snapshot, thing):
    """It is refused by its name; the next version comes after it, also by a rollback, and still of one learner."""
    models = ModelDirectory(tmp_path)
    models.publish(snapshot)
    broken = tmp_path / "v00000007"
    if thing == "file":
        broken.write_bytes(b"x")
    elif thing == "link to nowhere":
        broken.symlink_to(tmp_path / "nowhere")
    else:
        broken.mkdir()
    if thing == "manifest of nothing":
        (broken / "manifest.json").mkdir()
    if thing == "fifo":
        os.mkfifo(broken / "manifest.json")
    for read in (models.manifest, models.load):
        with pytest.raises(SnapshotError, match="7"):
            read(7)
    other = type("Other", (Learner,), {"inputs": SPEC, "model": DeepFM(4)})
    with pytest.raises(SnapshotError, match="of learner 'shelf', not 'other'"):
        models.publish(Snapshot.of(OnlineLearner(other)))
    assert models.publish(snapshot) == 8
    assert models.rollback(1) == 9


def test_a_model_file_that_is_no_file_is_named(tmp_path, snapshot):
    """Opening a pipe would wait for ever."""
    models = ModelDirectory(tmp_path)
    path = models.folder(models.publish(snapshot)) / "model.safetensors"
    for make in (os.mkfifo, os.mkdir):
        path.unlink()
        make(path)
        with pytest.raises(SnapshotError, match=r"v00000001 · model.safetensors: is no file"):
            models.load(1)
        shutil.rmtree(path) if make is os.mkdir else None


def test_versions_go_on_in_a_folder_that_was_emptied_or_deleted(tmp_path, snapshot):
    """A number that was published is not given to other content while its publisher lives."""
    models = ModelDirectory(tmp_path / "models")
    reader = ModelDirectory(tmp_path / "models")
    assert [models.publish(snapshot), models.publish(snapshot)] == [1, 2]
    shutil.rmtree(tmp_path / "models")
    assert (reader.versions(), reader.latest()) == ([], None)
    assert models.publish(snapshot) == 3
    assert reader.versions() == [3]


def test_what_a_killed_writer_staged_is_deleted_an_hour_later(tmp_path, snapshot):
    """And nothing else that lies there."""
    models = ModelDirectory(tmp_path)
    old, new = models.stage(snapshot).folder, models.stage(snapshot).folder
    (tmp_path / ".notes").mkdir()
    hour_ago = time.time() - 3_700
    for path in (old, tmp_path / ".notes"):
        os.utime(path, (hour_ago, hour_ago))
    models.publish(snapshot)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".notes", new.name, "v00000001"])


def test_a_redis_that_hangs_stops_neither_a_publisher_nor_a_follower(tmp_path, snapshot, monkeypatch):
    """The first call waits for its time-out, those of the pause for nothing; notices come again later."""
    monkeypatch.setattr(directory, "PAUSE_S", 60.0)  # however slow this machine is
    with EmbeddedRedis(tmp_path / "redis", aof=False) as server:
        models = ModelDirectory(tmp_path / "models", server.url)
        reader = ModelDirectory(tmp_path / "models", server.url)
        follower = Follower(reader)
        models.publish(snapshot)
        assert follower.poll() == 1
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with capture_logs() as logs:
                assert [models.publish(snapshot) for _ in range(4)] == [2, 3, 4, 5]
            assert time.monotonic() - began_s < 4 * directory.TIMEOUT_S  # and not a time-out for each
            assert [line["event"] for line in logs].count("model_notices_paused") == 1
            began_s = time.monotonic()
            follower.wait(0.25)
            assert time.monotonic() - began_s < 10
            assert follower.poll() == 5
            began_s = time.monotonic()
            follower.wait(0.25)
            assert time.monotonic() - began_s < directory.TIMEOUT_S  # which a call would wait for
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for notices in (models.notices, reader.notices):
            notices._paused_until_s = 0.0
        threading.Timer(0.3, models.publish, [snapshot]).start()
        follower.wait(0.1)  # what Redis had taken before it hung comes first
        until(lambda: follower.poll(200) == 6)


def test_a_path_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "models").write_text("")
    for path in (tmp_path / "models", tmp_path / "models" / "below"):
        with pytest.raises(SnapshotError, match=rf"folder of models: .*: {path}; name another one"):
            ModelDirectory(path)
