"""Checkpoints: whole or not there, checked when read, and those of an earlier release are still read."""

import shutil

import pytest

from headrace.errors import SnapshotError
from headrace.pipelines import Joiner, JoinStep
from headrace.pipelines.checkpoints import Checkpoints, keeping_the_last
from headrace.streams.watermark import END_OF_TIME_US
from tests import forked
from tests.faults import full_disk
from tests.pipelines.test_joiner import SPEC, Show, batch
from tests.pipelines.test_train_step import batches, make, run, weights
from tests.turnstiles import FOLLOWED


def test_the_newest_stay_with_their_facts(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for number in range(4):
        with checkpoints.write({"number": number}) as folder:
            (folder / "state").write_text(str(number))
    folder, facts = checkpoints.newest()
    assert (folder.name, facts["number"], (folder / "state").read_text()) == ("c00000004", 3, "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c00000003", "c00000004"]


def test_one_that_fails_leaves_the_newest_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints.write({"number": 1}) as folder:
        (folder / "state").write_text("1")

    def fail():
        with checkpoints.write({"number": 2}) as folder:
            (folder / "state").write_text("2")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert checkpoints.newest()[1]["number"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c00000001"]


def test_a_damaged_one_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints.write({}) as folder:
        (folder / "state").write_text("1")
    (tmp_path / "c00000001" / "state").write_text("2")
    with pytest.raises(
        SnapshotError, match="c00000001 · state: not what was saved; restore .*, or delete .* to begin anew"
    ):
        checkpoints.newest()


def as_earlier_release(folder):
    """A folder whose newest checkpoint has the name and pointer that releases before numbered ones gave it."""
    path, facts = Checkpoints(folder).newest()
    (path / "checkpoint.json").unlink()
    path.rename(folder / "1700000000")
    (folder / "LATEST").write_text("1700000000")
    return folder / "1700000000", facts


def test_a_joiner_of_an_earlier_release_resumes(tmp_path):
    first = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    first.expect(["shown/0", "followed/0"])
    first.apply(batch([Show(second, 1, (1,), number=second) for second in range(10)]))
    first.finish()
    as_earlier_release(tmp_path)
    again = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    assert (again.positions(), again.joiner.open_requests) == ({"shown/0": 10}, 10)
    again.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c00000001", "requests"]


def test_training_of_an_earlier_release_resumes_exactly(tmp_path):
    """It kept a trainer's own checkpoint inside, and two tables of offsets."""
    found = batches([4])
    first = run(make(tmp_path), found[:61])
    first.finish()
    positions = first.positions()
    folder, facts = as_earlier_release(tmp_path)
    shutil.rmtree(folder / "trainer")
    first.trainer.save(folder / "trainer")
    (folder / "progress.json").write_text(f"[{facts['joined']}, {facts['positives']}]")
    (folder / "held" / "positions.json").write_text(str({"visits/0": positions["visits/0"]}).replace("'", '"'))
    second = make(tmp_path)
    assert second.positions() == positions
    whole, second = run(make(), found), run(second, found)
    for step in (whole, second):
        step.trainer.drain()
    got = weights(second)
    assert all(array.tobytes() == got[name].tobytes() for name, array in weights(whole).items())
    assert whole.status()["positives"] == second.status()["positives"]


@pytest.mark.parametrize("gets_room", [True, False])
def test_checkpoints_that_fail_leave_the_last_one_whole(tmp_path, gets_room):
    """
    saved | fails, fails, fails | restart: goes on from the one that was saved, whose files are all there
                                | room: saved
    """
    found = batches([4])
    step = run(make(tmp_path), found[:60])
    step.save()
    for begin in (60, 80, 100):
        run(step, found[begin : begin + 20])
        with (
            full_disk(3_000),
            pytest.raises(SnapshotError, match=r"checkpoint in .*: cannot be written: .*; make room"),
        ):
            step.save()
    if gets_room:
        run(step, found[120:124])
        step.save()
    positions = step.positions()
    again = make(tmp_path)
    assert (again.positions() == positions) == gets_room
    run(again, found).trainer.drain()
    whole = run(make(), found)
    whole.trainer.drain()
    expected, got = weights(whole), weights(again)
    assert all(array.tobytes() == got[name].tobytes() for name, array in expected.items())


def test_a_file_that_was_deleted_under_a_run_is_no_full_disk(tmp_path):
    """The usual slip after a change of a view: the state is deleted while the flow still runs."""
    gone = tmp_path / "waiting" / "0.arrow"
    refused = pytest.raises(SnapshotError, match=rf"{gone}'; it was deleted while a run used it; start again")
    with refused, keeping_the_last(tmp_path):
        gone.read_bytes()


def test_a_joiner_that_cannot_save_leaves_its_last_state_whole(tmp_path):
    step = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    step.expect(["shown/0", "followed/0"])
    for round_ in range(6):
        first = 60 * round_
        step.apply(batch([Show(20 * round_, 1, (1, 2), number=number) for number in range(first, first + 60)], first))
        if round_ < 2:
            step.finish()
        else:
            with full_disk(3_000), pytest.raises(SnapshotError, match="cannot be written"):
                step.finish()
    again = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    assert again.positions() == {"shown/0": 120}
    assert len(again.joiner.advance(END_OF_TIME_US)) == 120


SECOND = """
import sys
from headrace.pipelines import Joiner, JoinStep
from tests.turnstiles import FOLLOWED

JoinStep(Joiner(FOLLOWED), state=sys.argv[1])
"""


def test_a_state_has_one_process(tmp_path, repo):
    """A second one would delete waiting rows that checkpoints of the first name, and a restart be refused."""
    step = JoinStep(Joiner(FOLLOWED), state=tmp_path)
    step.finish()
    second = forked.run(["-c", SECOND, tmp_path], cwd=repo)
    assert second.returncode == 1
    assert f"ServiceError: {tmp_path}: another process writes it" in second.stderr
    JoinStep(Joiner(FOLLOWED), state=tmp_path)
