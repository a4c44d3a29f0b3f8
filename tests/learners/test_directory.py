import threading
import time

import pytest
import redis

from headrace.errors import SnapshotError
from headrace.learners import DeepFM, Follower, Learner, ModelDirectory, OnlineLearner, Scorer, Snapshot
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
        while not got and time.monotonic() - at < 5:
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join()
    assert got == [published]


def test_a_notice_between_two_waits_is_not_lost(tmp_path, snapshot, redis_url):
    models = ModelDirectory(tmp_path, redis_url, stream="hr:gap")
    models.publish(snapshot)
    follower = Follower(models)
    models.publish(snapshot)
    began = time.monotonic()
    follower.wait(0.8)
    assert time.monotonic() - began < 0.5
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
