import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from headrace.errors import SnapshotError
from headrace.learners import DeepFM, Learner, OnlineLearner, Scorer, Snapshot
from headrace.learners.publishing.snapshot import read_manifest
from tests.shelves import SPEC, Shelf, Stream


@pytest.fixture
def online():
    trained = OnlineLearner(Shelf, seed=1)
    stream = Stream(1)
    for step in range(3):
        trained.learn(*stream.batch()[:2], event_time_us=step + 1)
    return trained


@pytest.fixture
def probe():
    return Stream(2).batch(32)[0]


@pytest.fixture
def folder(online, probe, tmp_path):
    snapshot = Snapshot.of(online, parent=4, offsets={"a/0": 17}, metrics={"auc": float("nan"), "x": 0.1}, probe=probe)
    snapshot.save(tmp_path / "v1")
    return tmp_path / "v1"


def test_what_is_loaded_is_what_was_saved(online, folder):
    loaded = Snapshot.load(folder, Shelf)
    arrays = online.state_dict(with_optimizer=False)
    assert {name for name in loaded.arrays if not name.startswith("probe.")} == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    facts = loaded.manifest
    assert (facts.learner, facts.parent, facts.offsets, facts.trained_through_us) == ("shelf", 4, {"a/0": 17}, 3)
    assert (facts.inputs, facts.views, facts.steps, facts.metrics["x"]) == (SPEC.fingerprint, {}, 3, 0.1)
    assert read_manifest(folder) == facts


def test_the_scorer_computes_what_the_learner_did(online, folder, probe):
    scorer = Scorer(Snapshot.load(folder, Shelf), Shelf)
    np.testing.assert_array_equal(scorer.score(probe), online.predict(probe))
    np.testing.assert_array_equal(scorer.score(scorer.probe), scorer.probe_scores)
    np.testing.assert_array_equal(scorer.score(probe, 1.5), online.predict(probe, 1.5))
    assert scorer.score(probe).dtype == np.float32


def test_the_scorer_is_frozen(online, folder, probe):
    scorer = Scorer(Snapshot.load(folder, Shelf), Shelf)
    direct = Scorer(Snapshot.of(online), Shelf)
    before = scorer.score(probe)
    for _ in range(3):
        online.learn(*Stream(3).batch()[:2])
    assert (online.predict(probe) != before).any()
    np.testing.assert_array_equal(scorer.score(probe), before)
    np.testing.assert_array_equal(direct.score(probe), before)


def test_threads_score_the_same(folder, probe):
    scorer = Scorer(Snapshot.load(folder, Shelf), Shelf)
    wanted, wrong = scorer.score(probe), []

    def work():
        wrong.extend(1 for _ in range(50) if (scorer.score(probe) != wanted).any())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_flipped_byte_anywhere_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    for place in np.random.default_rng(0).integers(0, len(data), 60):
        damaged = data.copy()
        damaged[place] ^= 1 << int(place) % 8
        (folder / name).write_bytes(damaged)
        try:
            same = json.loads(damaged) == json.loads(data) if name == "manifest.json" else False
        except ValueError:
            same = False
        if not same:  # white space of the manifest is not content
            with pytest.raises(SnapshotError):
                Snapshot.load(folder, Shelf)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_truncated_or_missing_file_is_found(folder, name):
    data = (folder / name).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(SnapshotError, match=name):
            Snapshot.load(folder, Shelf)
    (folder / name).unlink()
    with pytest.raises(SnapshotError, match=f"{name}: missing"):
        Snapshot.load(folder, Shelf)


def test_a_missing_folder_is_found(folder):
    shutil.rmtree(folder)
    with pytest.raises(SnapshotError, match="missing"):
        Snapshot.load(folder)


def test_another_learner_is_told_what_differs(folder, online):
    other = type("Other", (Learner,), {"inputs": SPEC, "model": Shelf.model})
    wide = type("Shelf", (Learner,), {"inputs": SPEC, "model": DeepFM(dim=8)})
    with pytest.raises(SnapshotError, match="learner: shelf, learner other has other"):
        Snapshot.load(folder, other)
    with pytest.raises(SnapshotError, match=r"model: DeepFM\(dim=4"):
        Snapshot.load(folder, wide)
    with pytest.raises(SnapshotError, match="model"):
        Snapshot.of(online).restore(OnlineLearner(wide))
    views = replace(Snapshot.of(online).manifest, views={"shelf": "a1"})
    with pytest.raises(SnapshotError, match="version of view shelf a1, learner shelf has none"):
        Snapshot(views, {}).restore(online)
    with pytest.raises(SnapshotError, match="dense arrays differ"):
        Scorer(Snapshot.load(folder), wide)


def test_a_checkpoint_restores_training(online, tmp_path):
    Snapshot.of(online, with_optimizer=True).save(tmp_path / "c")
    other = OnlineLearner(Shelf, seed=9)
    Snapshot.load(tmp_path / "c", Shelf).restore(other)
    inputs, labels, _ = Stream(4).batch()
    assert online.learn(inputs, labels) == other.learn(inputs, labels)
    one, two = online.state_dict(), other.state_dict()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_a_published_version_is_a_warm_start(online, folder):
    other = OnlineLearner(Shelf, seed=9)
    Snapshot.load(folder, Shelf).restore(other)
    inputs, labels, _ = Stream(5).batch()
    np.testing.assert_array_equal(other.predict(inputs), online.predict(inputs))
    other.learn(inputs, 1 - labels)
    moved = other.state_dict()["intercept"] - online.state_dict()["intercept"]
    assert 0 < abs(moved[0]) <= 1  # it goes on from there


def test_an_existing_version_is_not_overwritten(folder, online):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(SnapshotError, match="another writer"):
        Snapshot.of(online).save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]
