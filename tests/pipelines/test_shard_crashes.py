"""An engine killed at random moments, ten times in one log: the totals are exact.

engine 1 --flush--flush--x (kill -9)
                    engine 2 --flush--x
                                  engine 3 ...           each begins at the offsets in the store
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.features.verifier import verify
from tests.meters import MeterLoad, batches, log_frame

PLAN = plan_of(MeterLoad)
KILLS = 10
ROWS = 240_000

ENGINE = f"""
import sys
from headrace.errors import FencedError
from headrace.features import Slab, plan_of
from headrace.features.store import OnlineStore
from headrace.pipelines.shard import ShardSet
from tests.meters import MeterLoad, Reading, batches, log_frame

plan = plan_of(MeterLoad)
log = batches(log_frame({ROWS}, meters=3_000), 500)
warm = Slab(plan)
warm.update(plan.rows(Reading, log[0].frame))
rows = warm.dirty()
warm.load(warm.ids(rows), warm.texts(rows), warm.pack(rows))
store = OnlineStore.open(sys.argv[1])
print("ready", file=sys.stderr, flush=True)
sys.stdin.readline()
def run():
    shards = ShardSet(plan, store, range(32))
    start = shards.positions()
    for index, batch in enumerate(batch for batch in log if batch.next_offset > start.get(batch.partition, 0)):
        shards.apply(batch)
        if index % 3 == 0:
            shards.flush()
    shards.flush()

while True:
    try:
        run()
        break
    except FencedError:  # what the killed engine had sent arrived after we had read the fences
        continue
print("done", file=sys.stderr, flush=True)
"""


def engine(url):
    """An engine that has imported everything and waits for a line before it opens its shards."""
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", ENGINE, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )


def go(process):
    """Let it run, once it is ready."""
    assert process.stderr.readline() == b"ready\n"
    process.stdin.write(b"\n")
    process.stdin.flush()


def end(process):
    """Reap it; return whether it had come to the end of the log."""
    if process.stderr.closed:
        return False
    rest = process.stderr.read()
    process.wait()
    process.stdin.close()
    process.stderr.close()
    assert rest in {b"", b"done\n"}, rest.decode()
    return rest == b"done\n"


def wait_for(store, rows):
    """Return once the first shard has applied `rows` of the log."""
    while sum(store.fence(PLAN, 0).offsets.values()) < rows:
        time.sleep(0.001)


@pytest.mark.timeout(120)
def test_ten_kills_at_random_moments_leave_exact_totals(redis_url):
    """Counted by polars, by the store, and by the verifier; one kill in each eleventh of the log."""
    moments = random.Random(5)
    log = log_frame(ROWS, meters=3_000)
    with OnlineStore.open(redis_url) as store:
        following = engine(redis_url)
        try:
            for kill in range(KILLS):
                process, following = following, engine(redis_url)
                go(process)
                wait_for(store, ROWS * (kill + moments.random()) / (KILLS + 1))
                time.sleep(moments.uniform(0, 0.02))
                process.send_signal(signal.SIGKILL)
                assert not end(process)
            go(following)
            assert end(following)
        finally:
            following.kill()
            end(following)
        truth = log.group_by("meter").agg(pl.len().alias("n").cast(pl.Float64), pl.col("watts").sum()).sort("meter")
        found = store.read(MeterLoad, truth.select("meter"), now=log["at"].max())
        assert found["readings_lifetime"].cast(pl.Float64).to_list() == truth["n"].to_list()
        assert found["watts_lifetime"].to_list() == truth["watts"].to_list()
        assert verify(MeterLoad, batches(log, 50_000), store).ok
