"""Threads that share the interpreter stay on one CPU, and nothing else does."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.serving.lanes import OneCpu
from headrace.serving.lanes.one_cpu import BUSY_MAX, GAIN_MIN, choice

ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
SHARES = st.dictionaries(st.integers(0, 7), st.floats(0, 1), min_size=1)


@pytest.fixture
def threads():
    """Three threads that wait until the test ends."""
    end = threading.Event()
    made = [threading.Thread(target=end.wait, daemon=True) for _ in range(3)]
    for thread in made:
        thread.start()
    yield made
    end.set()
    for thread in made:
        thread.join()


def cpus_of(thread):
    return os.sched_getaffinity(thread.native_id)


def chosen(one_cpu):
    """Its CPU, once it has chosen one."""
    deadline_s = time.monotonic() + 60
    while one_cpu.cpu is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return one_cpu.cpu


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs, and Linux")
def test_threads_of_ours_share_a_cpu_until_it_is_closed(threads):
    early, late, free = threads
    one_cpu = OneCpu()
    one_cpu.add(early)
    assert cpus_of(early) == ALLOWED
    one_cpu.start()
    cpu = chosen(one_cpu)
    assert cpu in ALLOWED
    one_cpu.add(late)
    os.sched_setaffinity(free.native_id, {cpu})  # as if one of ours had made it
    one_cpu.free(free)
    assert cpus_of(free) == ALLOWED
    assert cpus_of(threading.current_thread()) == ALLOWED
    assert cpus_of(early) == cpus_of(late)
    assert len(cpus_of(early)) == 1
    one_cpu.close()
    assert cpus_of(early) == cpus_of(late) == ALLOWED


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs, and Linux")
def test_a_start_that_comes_after_the_close_starts_nothing(threads):
    """A replica that stops while it warms up: the warm-up's thread starts it last."""
    one_cpu = OneCpu()
    one_cpu.add(threads[0])
    one_cpu.close()
    one_cpu.start()
    assert one_cpu._keeper is None
    assert cpus_of(threads[0]) == ALLOWED


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs, and Linux")
def test_a_thread_that_has_ended_is_in_nobodys_way(threads):
    one_cpu, brief = OneCpu(), threading.Thread(target=int)
    brief.start()
    one_cpu.add(brief)
    brief.join()
    one_cpu.add(threads[0])
    one_cpu.start()
    assert chosen(one_cpu) in cpus_of(threads[0])
    one_cpu.close()


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs, and Linux")
def test_threads_run_on_any_cpu_again_once_nobody_can_say_what_others_do(threads, tmp_path):
    (tmp_path / "self" / "task").mkdir(parents=True)
    (tmp_path / "stat").write_text(Path("/proc/stat").read_text())
    one_cpu = OneCpu(proc=tmp_path)
    one_cpu.add(threads[0])
    one_cpu.start()
    assert chosen(one_cpu) in ALLOWED
    assert len(cpus_of(threads[0])) == 1
    (tmp_path / "stat").write_text("cpu0 in another form\n")
    deadline_s = time.monotonic() + 60
    while one_cpu.cpu is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert cpus_of(threads[0]) == ALLOWED
    one_cpu.add(threads[1])
    assert cpus_of(threads[1]) == ALLOWED
    one_cpu.close()


@given(others=SHARES)
def test_the_first_choice_is_a_cpu_with_little_to_do(others):
    assert others[choice(others, None)] <= min(others.values()) + 0.05


@given(others=SHARES, data=st.data())
def test_it_moves_only_where_much_less_is_done_and_then_at_last(others, data):
    cpu = data.draw(st.sampled_from(sorted(others)))
    tried = {choice(others, cpu) for _ in range(200)}
    if others[cpu] > BUSY_MAX and others[cpu] - min(others.values()) > GAIN_MIN + 0.05:
        assert tried - {cpu}  # each try moves by a half
    elif others[cpu] <= BUSY_MAX or others[cpu] - min(others.values()) <= GAIN_MIN:
        assert tried == {cpu}
