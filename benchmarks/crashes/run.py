"""Processes killed at random moments while millions of events become records: at the end every value is exact.

python -m benchmarks.crashes.run [--events 3000000] [--kills 50] [--layout bytewax|engines|broker|all] [--seed 7]

    engine 1 --flush--flush--x kill -9
                       engine 2 --flush--x          and in between, to the store: killed and restarted, put back to
                                  engine 3 ...      an older append-only file, FLUSHALL, a second engine on its shards

Layouts: one engine (Bytewax, one worker), two engines that share the shards, or one that follows a topic whose broker
is frozen, and killed and filled again. Values are compared with Polars over
the whole log, for every key and feature, and with a replay (`verify`). What is measured is not speed.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import polars as pl
import redis

from benchmarks.conditions import describe
from benchmarks.crashes.broker_log import BrokerLog
from benchmarks.crashes.declaration import VIEWS, MeterLoad, Reading, SiteLoad, write_log
from benchmarks.crashes.engine import WAIT_S, Engine, Job
from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.features.store.fences import Fence
from headrace.history.verify import verify
from headrace.local import EmbeddedRedis
from headrace.local.redis_server import AOF_FOLDER
from headrace.pipelines import FileSource

STORE_FAULTS = ("killed", "older", "flushall", "rival")
BROKER_FAULTS = ("broker restarted", "broker frozen")
OLDER_AT = 4
"""Kill after which the append-only file is kept, for the fault `older`."""
LAYOUTS = {"bytewax": (1, False), "engines": (2, False), "broker": (1, True)}
"""Name -> number of engines, and whether they read a topic."""
POLL_S = 0.01
"""Between two looks at how far an engine is: each takes time from it."""
UNDER_WAY_S = 0.05
"""Until Redis has carried out what an engine that stands still had sent."""
HOUR_US = 3_600_000_000


@dataclass
class Report:
    """What happened on the way to the right values."""

    kills: int = 0
    fenced: int = 0
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Errors of the source that ended a start: the broker had not, or not yet again, what the store had counted."""
    seconds: float = 0.0

    def note(self, told: list[str]) -> None:
        """Count what an engine had said."""
        self.fenced += told.count("fenced")
        self.lost += [line for line in told if line.startswith("source:")]


def crash_run(
    folder: Path,
    *,
    events: int,
    kills: int,
    seed: int,
    engines: int = 1,
    faults: bool = False,
    from_broker: bool = False,
) -> Report:
    """Bring a log of `events` into a store with `engines` engines and `kills` kills; `faults`: the store suffers too.

    `from_broker`: the log is a topic, which one engine follows, and with `faults` the broker suffers as well.
    Returns when everything has been counted and found exact; raises AssertionError where it is not.
    """
    log = write_log(folder / "log", events, seed)
    if not from_broker:
        source = FileSource(str(folder / "log" / "*.parquet"), Reading, sort=False)
        log = log.with_columns(
            pl.col("_partition").replace_strict({named.split(".")[0]: named for named in source.partitions()})
        )
    topic = BrokerLog(folder / "broker", log) if from_broker else None
    started_s = time.perf_counter()
    with EmbeddedRedis(folder / "redis") as server, OnlineStore.open(server.url) as store, topic or nullcontext():
        chaos = Chaos(server, store, topic or str(folder / "log" / "*.parquet"), engines, random.Random(seed))
        with chaos.standbys():
            report = chaos.run(events, kills, faults=faults)
        report.seconds = time.perf_counter() - started_s
        check_values(store, log)
        for view in VIEWS:
            found = verify(view, log, store)
            assert found.ok, found
    return report


class Chaos:
    """Runs engines over the log, ends them at random moments, and does what `STORE_FAULTS` and `BROKER_FAULTS` name."""

    def __init__(
        self, server: EmbeddedRedis, store: OnlineStore, log: str | BrokerLog, engines: int, moments: random.Random
    ) -> None:
        self._server, self._store, self._log, self._count, self._moments = server, store, log, engines, moments
        self._waiting: list[list[Engine]] = []
        self._running: list[Engine] = []
        self._older = server.folder / "older"
        self._report = Report()
        self._faults = STORE_FAULTS
        if isinstance(log, BrokerLog):
            self._faults = tuple(chain.from_iterable(zip(BROKER_FAULTS * 2, STORE_FAULTS, strict=True)))

    @contextmanager
    def standbys(self) -> Iterator[None]:
        """Engines that have imported everything, so that a kill costs milliseconds and not the start of a process."""
        self._waiting = [[self._engine(index)] for index in range(self._count)]
        self._running = [self._engine(index) for index in range(self._count)]
        try:
            yield
        finally:
            for engine in [*self._running, *(one for part in self._waiting for one in part)]:
                engine.close()

    def run(self, events: int, kills: int, *, faults: bool) -> Report:
        """Kill at `kills` random moments spread over the log; then let everything come to its end."""
        for engine in self._running:
            engine.go()
        for kill in range(kills):
            index = self._moments.choice([i for i, engine in enumerate(self._running) if engine.alive] or [0])
            self._wait_for(index, events * (kill + self._moments.random()) / (kills + 1))
            time.sleep(self._moments.uniform(0, 0.02))
            if faults and kill % 5 == 2:
                self._harm(self._faults[kill // 5 % len(self._faults)], index, events)
                time.sleep(self._moments.uniform(0.1, 0.4))
                self._restart_ended()
            self._replace(index)
            if kill == OLDER_AT:
                shutil.copytree(self._server.folder / AOF_FOLDER, self._older)
        if isinstance(self._log, BrokerLog):
            self._wait_for(0, events)  # an engine that follows a topic does not end by itself
        for engine in self._running:
            told = engine.terminate() if isinstance(self._log, BrokerLog) else engine.end()
            assert told[-1] == "done", told
            self._report.note(told)
        return self._report

    def _engine(self, index: int) -> Engine:
        from_broker = isinstance(self._log, BrokerLog)
        log = self._log.bootstrap if isinstance(self._log, BrokerLog) else self._log
        return Engine(Job(log, self._server.url, index, self._count, from_broker))

    def _replace(self, index: int) -> None:
        """End an engine with kill -9; its standby takes over."""
        told = self._running[index].kill()
        self._report.kills += told[-1:] != ["done"]
        self._report.note(told)
        self._start_standby(index)

    def _restart_ended(self) -> None:
        """An engine that was through with the log cannot notice that the store lost what it had written."""
        for index, engine in enumerate(self._running):
            if not engine.alive:
                self._report.note(engine.end())
                self._start_standby(index)

    def _start_standby(self, index: int) -> None:
        self._running[index] = self._waiting[index].pop()
        self._running[index].go()
        self._waiting[index].append(self._engine(index))

    def _wait_for(self, index: int, rows: float) -> None:
        """Return once the shard `index`, which engine `index` owns, has applied `rows` of the log in every view."""
        _until(lambda: not self._running[index].alive or min(self._applied(index)) >= rows)

    def _applied(self, index: int) -> list[int]:
        return [sum(self._store.fence(plan_of(view), index).offsets.values()) for view in VIEWS]

    def _harm(self, fault: str, index: int, events: int) -> None:
        if isinstance(self._log, BrokerLog) and fault in BROKER_FAULTS:
            seconds = self._moments.uniform(0.3, 1.0)
            if fault == "broker frozen":
                self._log.freeze(seconds)
            else:
                self._log.lose(seconds)
                # It must not take the empty log for one that it has read.
                _until(lambda: self._running[index].has_said("source:") or not self._running[index].alive)
                assert self._running[index].alive, self._running[index].end()
                self._log.publish()
        elif fault == "rival":
            self._run_rival(index, events)
        elif fault == "flushall":
            with redis.Redis.from_url(self._server.url) as client:
                client.flushall()
                client.hsetnx("hr:meta", "shards", self._store.shards)
        else:
            self._server.kill()
            if fault == "older" and self._older.exists():
                shutil.rmtree(self._server.folder / AOF_FOLDER)
                shutil.copytree(self._older, self._server.folder / AOF_FOLDER)
            self._server.start()
        self._report.faults.append(fault)

    def _run_rival(self, index: int, events: int) -> None:
        """A second engine takes over while the first stands still, which then is fenced, begins anew, and fences it."""
        running, rival = self._running[index], self._waiting[index].pop()
        self._waiting[index].append(self._engine(index))

        def through() -> bool:
            return min(self._applied(index)) >= events

        # The first must have written: two steps, for one can be of an engine that was killed.
        written = self._fence(index).sequence + 2
        _until(lambda: self._fence(index).sequence >= written or through() or not running.alive)
        with running.frozen():
            time.sleep(UNDER_WAY_S)
            before = self._fence(index).writer
            rival.go()
            # An engine that follows a topic may be through with it before the rival has read anything.
            _until(lambda: self._fence(index).writer != before or through() or not rival.alive)
        time.sleep(self._moments.uniform(0.0, 0.2))
        self._report.note(rival.kill())
        if self._fence(index).writer != before:
            _until(lambda: running.has_said("fenced") or not running.alive)

    def _fence(self, index: int) -> Fence:
        return self._store.fence(plan_of(MeterLoad), index)


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "what had to come did not come"
        time.sleep(POLL_S)


def check_values(store: OnlineStore, log: pl.DataFrame) -> None:
    """Every feature of every key equals what Polars counts over the log."""
    now = log["at"].max()
    now_us = int(log["at"].dt.epoch("us").max()) + 1

    def since(window_us: int, hop_us: int) -> pl.Expr:
        return pl.col("at").dt.epoch("us") >= now_us // hop_us * hop_us - window_us

    tens, hours = since(HOUR_US // 6, 15_000_000), since(HOUR_US, 120_000_000)
    counts = {
        "readings_10m": tens.sum().cast(pl.Int64),
        "readings_lifetime": pl.len().cast(pl.Int64),
        "watts_lifetime": pl.col("watts").sum(),
    }
    newest = pl.col("site").sort_by("at", "reading_id").reverse()
    meters = log.group_by("meter").agg(
        **counts,
        readings_1h=hours.sum().cast(pl.Int64),
        watts_1h=pl.col("watts").filter(hours).sum(),
        recent=newest.head(10),
        ties=pl.col("at").n_unique() < pl.len(),
    )
    for view, truth in ((MeterLoad, meters), (SiteLoad, log.group_by("site").agg(**counts))):
        key = plan_of(view).entity[0]
        truth = truth.sort(key)  # noqa: PLW2901
        found = store.read(view, truth.select(key), now=now_us)
        assert (found["_status"] == "fresh").all(), f"{view.__name__} as of {now} lacks keys"
        for name in truth.columns:
            if name in found.columns and name != "recent":
                pair = truth.select(key, truth=name, found=found[name].cast(truth[name].dtype))
                wrong = pair.filter(pl.col("truth").ne_missing(pl.col("found")))
                assert wrong.is_empty(), f"{view.__name__}.{name}: {wrong}, in all {wrong.sum()}"
        if "recent" in truth.columns:
            differing = found.filter((found["recent"] != truth["recent"]) & ~truth["ties"])
            assert differing.is_empty(), differing


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--layout", choices=(*LAYOUTS, "all"), default="all")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.crashes.run", ("bytewax", "confluent-kafka", "polars", "redis"), given)
    for layout, (engines, from_broker) in LAYOUTS.items():
        if given.layout not in {layout, "all"}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = crash_run(
                Path(folder),
                events=given.events,
                kills=given.kills,
                seed=given.seed,
                engines=engines,
                faults=True,
                from_broker=from_broker,
            )
        print(
            f"{layout}: {given.events:,} events exact after {found.kills} kills, {found.fenced} fenced starts, "
            f"{len(found.lost)} starts without enough of a log, and {len(found.faults)} faults "
            f"({', '.join(found.faults)}) in {found.seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
