"""Swap: what becomes live, what is refused, how it rolls back."""

import gc
import os
import shutil
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from headrace.errors import SnapshotError
from headrace.learners import ModelDirectory, Snapshot
from headrace.serving import DirectoryReleases
from headrace.serving.report import published_entry
from headrace.serving.swap import swap as swap_module
from tests.logs import capture_logs
from tests.serving import stage
from tests.serving.stage import NextThing, Published, Signature, until


@pytest.fixture
def follow(ranker):
    """`follow(releases, ...)` gives a started Swap, closed at the test's end."""
    started = []

    def start(releases, **options):
        started.append(stage.swap_of(ranker, releases, **options).start(wait_s=5))
        return started[-1]

    yield start
    for swap in started:
        swap.close()


def test_the_newest_becomes_live_and_those_between_are_skipped(follow):
    """Versions 2..5 are published while 1 loads: 5 follows 1."""
    gate = threading.Event()

    class Slow(Published):
        def load(self, version):
            loaded = super().load(version)
            assert gate.wait(20)
            return loaded

    releases = Slow({1: Signature(1)})

    def publish():
        until(lambda: releases.loads == [1])
        releases.models |= {version: Signature(version) for version in range(2, 6)}
        gate.set()

    publishing = threading.Thread(target=publish)
    publishing.start()
    swap = follow(releases)
    publishing.join()
    until(lambda: swap.live.version == 5)
    assert releases.loads == [1, 5]
    assert [(entry.previous, entry.version) for entry in swap.history] == [(None, 1), (1, 5)]


def not_finite(inputs):
    return np.full(len(inputs), np.nan, np.float32)


def wrong_shape(inputs):
    return np.zeros((len(inputs), 1), np.float32)


def breaks(inputs):
    raise RuntimeError("kernel died")


@pytest.mark.parametrize(
    "bad",
    [SnapshotError("truncated"), ValueError("odd bytes"), not_finite, wrong_shape, breaks],
    ids=["corrupt", "any_error", "not_finite", "wrong_shape", "raises"],
)
def test_a_bad_snapshot_is_refused_once_and_the_live_one_goes_on(follow, bad):
    """Counted, not retried; the next good one is taken."""
    releases = Published({1: Signature(1)})
    swap = follow(releases)
    model = Signature(2)
    if not isinstance(bad, Exception):
        model.score = bad
    releases.models[2] = bad if isinstance(bad, Exception) else model
    until(lambda: swap.refused == 1)
    time.sleep(0.02)
    assert (swap.live.version, swap.refused, releases.loads.count(2)) == (1, 1, 1)
    releases.models[3] = Signature(3)
    until(lambda: swap.live.version == 3)


def test_a_model_of_other_layouts_is_refused(follow):
    """The fingerprints of the views that this process reads must be those of the training."""
    releases = Published({1: Signature(1)}, fingerprints={**NextThing.fingerprints(), "thing_activity": "0" * 16})
    swap = stage.swap_of(stage.NO_STORE_RANKER, releases)
    assert not swap.refresh()
    assert (swap.live, swap.refused) == (None, 1)


def test_a_file_system_that_fails_for_a_moment_is_asked_again():
    """OSError is not a verdict on the snapshot."""
    releases = Published({1: Signature(1)})
    good, failures = releases.load, [OSError("stale handle"), OSError("stale handle")]

    def load(version):
        if failures:
            raise failures.pop()
        return good(version)

    releases.load = load
    swap = stage.swap_of(stage.NO_STORE_RANKER, releases)
    assert swap.refresh()
    assert swap.live.version == 1


def test_the_live_version_stays_when_its_folder_vanishes(follow):
    """1 2 -> 2 live | 2 vanishes: 2 stays, and is said to be unpublished | 2 again: published | 3 -> 3 live."""
    releases = Published({1: Signature(1), 2: Signature(2)})
    with capture_logs() as logs:
        swap = follow(releases)
        assert (swap.live.version, swap.newest, swap.is_unpublished) == (2, 2, False)
        second = releases.models.pop(2)
        until(lambda: swap.is_unpublished)
        time.sleep(0.02)
    assert (swap.live.version, swap.newest, swap.swaps) == (2, 1, 1)
    assert [line["event"] for line in logs] == ["model_swapped", "live_model_unpublished"]
    releases.models = {}
    until(lambda: swap.newest is None)
    assert swap.live.version == 2
    releases.models = {2: second}
    until(lambda: not swap.is_unpublished)
    releases.models[3] = Signature(3)
    until(lambda: swap.live.version == 3)


def test_a_start_takes_the_newest_version_that_is_whole(follow):
    """Of 1, 2, 3 (broken) and 4 (broken): 2, and 4 is shown as refused until 5 comes."""
    broken = {version: SnapshotError(f"version {version} is truncated") for version in (3, 4)}
    releases = Published({1: Signature(1), 2: Signature(2), **broken})
    swap = follow(releases)
    until(lambda: swap.live is not None)
    time.sleep(0.02)
    assert (swap.live.version, swap.last_refused.version, releases.loads) == (2, 4, [4, 3, 2])
    releases.models[5] = Signature(5)
    until(lambda: swap.live.version == 5)
    assert swap.last_refused is None


def test_earlier_models_are_kept_within_bounds():
    """Of models of 400 bytes two fit into 1,000 beside the live one, of 600 bytes one."""

    class Sized(Published):
        def load(self, version):
            loaded = super().load(version)
            return replace(loaded, manifest={"files": {"model.safetensors": {"bytes": self.size}}})

    for size, kept in ((400, [4, 3]), (600, [4]), (2_000, [])):
        releases = Sized()
        releases.size = size
        swap = stage.swap_of(stage.NO_STORE_RANKER, releases, keep=5, keep_bytes_max=1_000)
        for version in range(1, 6):
            releases.models[version] = Signature(version)
            assert swap.refresh()
        assert swap.kept == kept
        assert [version for version in range(1, 7) if swap.loaded(version)] == [*sorted(kept), 5]


def test_rollback_holds_until_something_newer_comes(follow):
    """1, 2, 3, back to 1: not overtaken by 3 again, but by 4."""
    releases = Published({1: Signature(1)})
    swap = follow(releases)
    for version in (2, 3):
        releases.models[version] = Signature(version)
        until(lambda wanted=version: swap.live.version == wanted)
    assert swap.kept == [2, 1]
    swap.rollback(1)
    time.sleep(0.02)
    assert (swap.live.version, swap.kept, releases.loads) == (1, [3, 2], [1, 2, 3])
    releases.models[4] = Signature(4)
    until(lambda: swap.live.version == 4)
    assert swap.kept == [1, 3]


def test_rollback_to_an_unknown_version_changes_nothing():
    """SnapshotError from the directory; the live model stays."""
    releases = Published({1: SnapshotError("gone"), 2: Signature(2)})
    swap = stage.swap_of(stage.NO_STORE_RANKER, releases)
    swap.refresh()
    with pytest.raises(SnapshotError, match="gone"):
        swap.rollback(1)
    assert (swap.live.version, swap.kept) == (2, [])


def test_only_the_live_model_and_two_before_it_stay_in_memory():
    """Of ten models seven are gone."""
    releases, alive = Published(), []
    swap = stage.swap_of(stage.NO_STORE_RANKER, releases)
    for version in range(1, 11):
        model = Signature(version)
        alive.append(weakref.ref(model))
        releases.models = {version: model}
        assert swap.refresh()
        del model
    releases.models = {}
    gc.collect()
    assert [ref() is not None for ref in alive] == [False] * 7 + [True] * 3


def test_swaps_keep_their_distance(follow):
    """Publishing every 5 ms with a cadence of 0.1 s: about ten a second, each the newest of its moment."""
    releases, began_s = Published({1: Signature(1)}), time.monotonic()
    swap = follow(releases, cadence_s=0.1)
    for version in range(2, 80):
        releases.models[version] = Signature(version)
        time.sleep(0.005)
    until(lambda: swap.live.version == 79)
    at_us = np.array([entry.swapped_us for entry in swap.history])
    assert np.diff(at_us).min() >= 0.1e6
    assert len(at_us) <= 2 + (time.monotonic() - began_s) / 0.1


def test_the_loader_outlives_a_directory_that_fails_and_a_hook_that_raises(follow):
    """Neither stops the following."""

    class Flaky(Published):
        calls = 0

        def versions(self):
            self.calls += 1
            if self.calls % 3 == 1:
                raise OSError("not mounted")
            return super().versions()

    def hook(swapped):
        raise ValueError(swapped)

    releases = Flaky({1: Signature(1)})
    swap = follow(releases, on_swap=hook)
    releases.models[2] = Signature(2)
    until(lambda: swap.live.version == 2)


def test_a_refusal_ends_with_its_folder(follow):
    """1 2x -> 2 refused | 2 deleted: nothing is refused | the same 2 again: refused anew."""
    releases = Published({1: Signature(1), 2: SnapshotError("truncated")})
    swap = follow(releases)
    until(lambda: swap.last_refused is not None)
    broken = releases.models.pop(2)
    until(lambda: swap.last_refused is None)
    until(lambda: REGISTRY.get_sample_value("headrace_model_refused_version") == 0)  # set just after
    releases.models[2] = broken
    until(lambda: swap.last_refused is not None)
    assert (swap.live.version, swap.last_refused.version) == (1, 2)


def test_of_two_refusals_the_older_is_shown_once_the_newer_is_gone(follow):
    """1 2x 3x: 3 | 3 deleted: 2."""
    releases = Published({1: Signature(1), 2: SnapshotError("two"), 3: SnapshotError("three")})
    swap = follow(releases)
    until(lambda: swap.live is not None)
    assert swap.last_refused.version == 3
    del releases.models[3]
    until(lambda: swap.last_refused.version == 2)
    assert swap.last_refused.reason == "two"


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), MemoryError()])
def test_what_this_machine_could_not_read_is_tried_again(monkeypatch, fault):
    """A disk or a memory that fails for long is no fault of the version: its files need not change."""
    late_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late_s, perf_counter=time.perf_counter)
    monkeypatch.setattr(swap_module, "time", clock)
    releases = Published({1: Signature(1), 2: fault})
    releases.state_of = lambda _version: "the same"
    swap = stage.swap_of(stage.NO_STORE_RANKER, releases)
    assert swap.refresh()
    assert (swap.live.version, swap.last_refused.version) == (1, 2)
    assert swap.last_refused.reason.startswith(type(fault).__name__)
    assert "Input/output error" in swap.last_refused.reason or fault.args == ()
    loads = len(releases.loads)
    late_s = swap_module.RETRY_S - 4.0
    assert not swap.refresh()
    assert len(releases.loads) == loads
    releases.models[2] = Signature(2)
    late_s = swap_module.RETRY_S
    assert swap.refresh()
    assert swap.live.version == 2


def test_a_directory_that_cannot_be_read_is_shown(follow):
    """As long as it cannot, in the log once, by a counter and by the state; the live model stays."""
    releases = Published({1: Signature(1)})
    good, before = releases.versions, swap_module.LOOKS_FAILED._value.get()

    def fails():
        raise PermissionError(13, "Permission denied", "/models")

    with capture_logs() as logs:
        swap = follow(releases)
        releases.versions = fails
        until(lambda: swap.look_fault is not None)
        until(lambda: swap_module.LOOKS_FAILED._value.get() >= before + 2)
        assert published_entry(swap)["fault"] == "PermissionError: Permission denied; see the replica's log"
        releases.versions = good
        until(lambda: swap.look_fault is None)
    assert "fault" not in published_entry(swap)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["model_follow_failed"]
    releases.models[2] = Signature(2)
    until(lambda: swap.live.version == 2)


# Real snapshots in a real directory


@pytest.fixture
def directory(tmp_path, redis_url):
    return ModelDirectory(tmp_path / "models", redis_url, keep=10)


def snapshot_of(seed):
    return Snapshot.of(stage.learned(seed), probe=stage.NO_STORE_RANKER.probe(5))


def publish(directory, seed):
    return directory.publish(snapshot_of(seed))


def test_a_published_snapshot_is_live_at_once(follow, directory):
    """The loader looks when it is told, or after WAIT_S (a busy machine adds to it); scores are the learner's."""
    publish(directory, 1)
    swap = follow(DirectoryReleases(directory, NextThing))
    second = snapshot_of(2)
    before = time.monotonic()
    directory.publish(second)
    until(lambda: swap.live.version == 2)
    assert time.monotonic() - before < 4.0
    probe = stage.NO_STORE_RANKER.probe(20)
    assert swap.live.scorer.score(probe) == pytest.approx(stage.learned(2).predict(probe))
    assert swap.live.manifest["version"] == 2


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_snapshot_is_refused_while_the_old_one_serves(directory, file, damage):
    """Any changed byte, any missing one."""
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    publish(directory, 1)
    assert swap.refresh()
    path = directory.folder(publish(directory, 2)) / file
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    if damage == "missing":
        path.unlink()
    assert not swap.refresh()
    assert (swap.live.version, swap.refused) == (1, 1)


@pytest.mark.parametrize("order", [("model.safetensors", "manifest.json"), ("manifest.json", "model.safetensors")])
def test_a_folder_that_is_copied_file_by_file_is_taken_once_it_is_whole(directory, tmp_path, order):
    """Refused while it is not whole, though not at each look; taken at the second look after its last change."""
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    publish(directory, 1)
    assert swap.refresh()
    target = directory.folder(publish(directory, 2))
    whole = shutil.copytree(target, tmp_path / "whole")
    for file in order:
        (target / file).unlink()
    for part in (slice(0, 100), slice(100, None)):
        for file in order:
            with (target / file).open("ab") as out:
                out.write((whole / file).read_bytes()[part])
            if (part, file) != (slice(100, None), order[-1]):
                assert not swap.refresh()
    assert swap.last_refused.version == 2
    assert swap.refused == 1  # it changed before each look
    assert not swap.refresh()
    assert swap.refresh()
    assert (swap.live.version, swap.last_refused) == (2, None)
    assert not swap.refresh()


def test_a_snapshot_that_does_not_reproduce_its_probe_is_refused(directory):
    """Whole by its checksums, but the weights are not those that gave the probe's scores."""
    honest = Snapshot.of(stage.learned(1), probe=stage.NO_STORE_RANKER.probe(5))
    lying = replace(honest, arrays={**honest.arrays, "probe.scores": honest.arrays["probe.scores"] + np.float32(0.01)})
    directory.publish(lying)
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    assert not swap.refresh()
    assert swap.refused == 1


@pytest.mark.parametrize("array", ["table.thing.weights", "numbers.mean", "intercept"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(directory, array):
    """In a row that no probe reads, too; all checksums are right."""
    snapshot = Snapshot.of(stage.learned(1), probe=stage.NO_STORE_RANKER.probe(5))
    arrays = {name: np.array(values) for name, values in snapshot.arrays.items()}
    arrays[array].reshape(-1)[-1:] = np.inf
    directory.publish(snapshot)
    directory.publish(replace(snapshot, arrays=arrays))
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    assert swap.refresh()
    assert (swap.live.version, swap.last_refused.version) == (1, 2)
    assert f"{array}: 1 of" in swap.last_refused.reason


def test_a_folder_whose_manifest_names_another_version_is_refused(directory):
    """Folder v2 copied to v3 by hand."""
    for seed in (1, 2):
        publish(directory, seed)
    shutil.copytree(directory.folder(2), directory.folder(3))
    with pytest.raises(SnapshotError, match="v00000003: its manifest says version 2"):
        directory.load(3, NextThing)
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    assert swap.refresh()
    assert (swap.live.version, swap.last_refused.version) == (2, 3)


def test_the_directorys_rollback_comes_as_a_new_version(directory):
    """Old content, new number: versions of a replica never fall."""
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    scores = []
    probe = stage.NO_STORE_RANKER.probe(5)
    for act in (lambda: publish(directory, 1), lambda: publish(directory, 2), lambda: directory.rollback(1)):
        act()
        assert swap.refresh()
        scores.append(swap.live.scorer.score(probe))
    assert swap.live.version == 3
    assert (scores[0] == scores[2]).all()
    assert (scores[0] != scores[1]).any()


def test_a_directory_that_is_deleted_and_made_anew(directory):
    """1 2 -> 2 live | all deleted: 2 stays, unpublished | the same publisher goes on at 3 -> 3 live."""
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    publish(directory, 1)
    publish(directory, 2)
    assert swap.refresh()
    shutil.rmtree(directory.path)
    assert not swap.refresh()
    assert (swap.live.version, swap.newest, swap.is_unpublished) == (2, None, True)
    publish(directory, 3)
    assert swap.refresh()
    assert (swap.live.version, swap.is_unpublished) == (3, False)


@pytest.mark.parametrize("thing", ["file", "link to itself", "link to nowhere", "pipe", "folder for the manifest"])
def test_what_is_no_snapshot_at_all_is_refused_by_its_name(directory, thing):
    """Each in some milliseconds, none waited for; the next good one is taken."""
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    publish(directory, 1)
    target = directory.folder(2)
    if thing == "file":
        target.write_bytes(b"tar")
    elif thing.startswith("link"):
        target.symlink_to(target if thing == "link to itself" else "nowhere")
    elif thing == "pipe":
        file = directory.folder(publish(directory, 2)) / "model.safetensors"
        file.unlink()
        os.mkfifo(file)
    else:
        (target / "manifest.json").mkdir(parents=True)
    assert swap.refresh()
    assert (swap.live.version, swap.last_refused.version) == (1, 2)
    reasons = {"file": "missing", "link to itself": "Too many levels", "link to nowhere": "missing"}
    assert reasons.get(thing, "is no file") in swap.last_refused.reason
    assert publish(directory, 3) == 3
    assert swap.refresh()
    assert swap.live.version == 3


def test_another_model_under_the_live_number_is_said(directory, tmp_path):
    """
    1 2 -> 2 live | 2 deleted by hand, another trainer publishes 2: 2 stays as it was, and is said to be unpublished |
    the first 2 is put back: published | 2 damaged: unpublished | 3 -> 3 live
    """
    swap = stage.swap_of(stage.NO_STORE_RANKER, DirectoryReleases(directory, NextThing))
    publish(directory, 1)
    publish(directory, 2)
    assert swap.refresh()
    live, folder = swap.live, directory.folder(2)

    def look():
        for _ in range(3):
            assert not swap.refresh()
        assert swap.live is live
        return swap.is_unpublished

    assert not look()
    folder.rename(tmp_path / "first")
    assert look()
    assert publish(ModelDirectory(directory.path), 3) == 2
    assert look()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "first", folder, copy_function=shutil.copyfile)
    assert not look()
    (folder / "model.safetensors").write_bytes(b"")
    assert look()
    assert publish(directory, 3) == 3
    assert swap.refresh()
    assert not swap.refresh()
    assert (swap.live.version, swap.is_unpublished) == (3, False)
