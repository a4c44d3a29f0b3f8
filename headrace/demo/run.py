"""Run the main job: history, then the live loop, then the report.

backfill + warm start -> serving, materialize, train start -> play the log -> drain -> measure -> report
"""

import asyncio
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from rich.console import Console

from headrace.atomic import write_file
from headrace.clock import AcceleratedClock, Clock, FixedClock, PacedClock, wall_us
from headrace.demo import history, meters
from headrace.demo.declaration import Demo
from headrace.demo.player import Played, Player, plan_asks
from headrace.demo.report import Report, marks, promises, show
from headrace.demo.screen import Figures, Screen
from headrace.demo.stack import Stack
from headrace.errors import ConfigError, ServiceError
from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory
from headrace.pipelines import EventBatch, Intake, KafkaSource
from headrace.pipelines.from_history.reading import read_to_end
from headrace.pipelines.wiring import dead_letters, registry_of, topic_writer
from headrace.schemas import spec_of
from headrace.schemas.dead_letters import read as read_letters
from headrace.settings import PREFIX, Settings
from headrace.telemetry import StatusBoard

LATENESS_S = 1.0  # wall time by which events may be out of order: an event is sent after the answer to its request
START_S = 0.5  # between the clock's start and its first event
SHOW_S = 0.5
READ_S = 2.0  # between two online reads for parity
READ_RECORDS = 32
DRAIN_S_MAX = 20.0
READY_S_MAX = 120.0
KNOTS = 1_001  # knots of the pace: a tenth of a second apart in the default length


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Flags of `headrace demo`; the CLI describes them."""

    seconds: float
    speed: float | None
    requests_per_s: float
    warm_rows: int
    folder: Path
    seed: int
    json_path: Path | None


def run_demo(demo: Demo, root: Path, options: DemoOptions, console: Console | None = None) -> bool:
    """Run the demo and print the report to `console`, by default stdout.

    Returns whether every promise that could be judged was kept.

    Raises:
        HeadraceError: a service does not start, or died; all other services are stopped.
    """
    frame = demo.load()
    if frame.height < options.warm_rows:
        raise ConfigError(f"the log has {frame.height:,} rows, --warm-rows is {options.warm_rows:,}: ask for fewer")
    with Screen() as screen:
        report = _Run(demo, root, options, frame, screen).run()
    kept = promises(report, seconds=options.seconds)
    show(report, kept, console or Console())
    if options.json_path is not None:
        options.json_path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    return all(promise.kept is not False for promise in kept)


class _Run:
    """State of one run, from the log to the report."""

    def __init__(self, demo: Demo, root: Path, options: DemoOptions, frame: pl.DataFrame, screen: Screen) -> None:
        self.demo = demo
        self.root = root
        self.options = options
        self.frame = frame
        self.screen = screen
        self.spec = spec_of(demo.event)
        self.times_us = frame[self.spec.time].dt.epoch("us").to_numpy()
        self.first = int(frame.height * demo.history_share)
        self.golive_us = int(self.times_us[self.first])
        self.end_us = int(self.times_us[-1]) + 1
        if options.speed is not None:
            self.end_us = min(self.end_us, self.golive_us + int(options.seconds * options.speed * 1e6))
        self.speed = max((self.end_us - self.golive_us) / 1e6 / options.seconds, 1.0)
        self.folder = options.folder.resolve() / "run"
        self.figures = Figures(total_s=options.seconds, speed=self.speed)
        self.learned, self.sent = meters.Rate(), meters.Rate()

    def run(self) -> Report:
        shutil.rmtree(self.folder, ignore_errors=True)  # the broker starts empty, so the store must too
        self.folder.mkdir(parents=True)
        self._write_clock(FixedClock(self.golive_us))
        topics = {spec_of(event).topic: self.demo.partitions for event in (self.demo.event, self.demo.impression)}
        self.screen.say(f"project {self.root.name}, data in {self.folder}")
        with Stack(self.folder, self.root, {**topics, "dead-letters": 1}, self._environment()) as stack:
            settings = Settings.model_validate(_settings_of(stack.environment))
            store = OnlineStore.open(settings.redis_url, settings.shards, settings.namespace)
            past = history.history_batches(self.demo, self.frame[: self.first], settings, self.golive_us, self.screen)
            history.warm_start(
                self.demo, past, settings, self.options.folder.resolve(), self.options.warm_rows, self.screen
            )
            started_s = time.monotonic()
            stack.launch("serve", ["serve"])  # Ray takes seconds to start, during which the store is filled
            history.backfill(self.demo, past, store, self.screen)
            self._launch_jobs(stack, settings, started_s)
            return self._live(stack, settings, store, past)

    def _environment(self) -> dict[str, str]:
        lateness_s = LATENESS_S * self.speed
        return {
            "HEADRACE_CLOCK": f"file:{self.folder / 'clock'}",
            "HEADRACE_MODEL_DIR": str(self.folder / "models"),
            "HEADRACE_STATE_DIR": str(self.folder / "state"),
            "HEADRACE_DEAD_LETTER_DIR": str(self.folder / "dead_letters"),
            "HEADRACE_LATENESS_S": repr(lateness_s),
            "HEADRACE_FUTURE_S": repr(2 * lateness_s + 600),
            "HEADRACE_FROZEN_VERSION": "1",
            "HEADRACE_MODELS_KEPT": "100000",
            "HEADRACE_REQUEST_TIMEOUT_S": "10",  # all share one machine: slow answers are shown, not refused
        }

    def _write_clock(self, clock: Clock) -> None:
        write_file(self.folder / "clock", str(clock).encode())

    def _start_clock(self) -> AcceleratedClock | PacedClock:
        """Start the event clock: at --speed, or else with a pace that plays the rest of the log evenly."""
        started_us = wall_us() + int(START_S * 1e6)
        clock: AcceleratedClock | PacedClock
        if self.options.speed is not None:
            clock = AcceleratedClock(self.golive_us, started_us, self.options.speed)
        else:
            events_us = np.quantile(self.times_us[self.first :], np.linspace(0, 1, KNOTS), method="lower")
            walls_us = np.linspace(0, self.options.seconds * 1e6, KNOTS)
            path = self.folder / "pace.npy"
            np.save(path, np.stack([walls_us, events_us], axis=1).astype(np.int64))
            clock = PacedClock.load(started_us, path)
        self._write_clock(clock)
        return clock

    def _launch_jobs(self, stack: Stack, settings: Settings, started_s: float) -> None:
        stack.launch("materialize", ["run", self.demo.materialize])
        stack.launch("train", ["run", self.demo.train])
        stack.wait_until_served()
        board = StatusBoard(settings.redis_url, settings.namespace)
        while not {"materialize", "train"} <= set(board.read()):
            stack.check()
            if time.monotonic() - started_s > READY_S_MAX:
                raise ServiceError(f"the jobs show no status after {READY_S_MAX:.0f} s; logs are in {self.folder}")
            time.sleep(0.1)
        self.screen.say(
            f"serving, materialize and train are ready after {time.monotonic() - started_s:.0f} s: {stack.url}"
        )

    def _live(self, stack: Stack, settings: Settings, store: OnlineStore, past: list[EventBatch]) -> Report:
        reads = meters.Reads(store, self.demo.learner.views, self.frame, each=READ_RECORDS, seed=self.options.seed)
        board = StatusBoard(settings.redis_url, settings.namespace)
        played = self._play(stack, settings, reads, board)
        if played.events == 0:
            raise ServiceError("no event was played: the clock ended before the first of them")
        statuses = self._drain(stack, board, played)
        served = httpx.get(stack.url + "/v1/report", timeout=10.0).json()
        stack.stop("serve")  # its impression log is flushed
        stack.stop("train")
        statuses = {**statuses, **board.read()}
        stack.stop("materialize")
        self.screen.say("measuring: parity, mixed versions, event to served model")
        return self._report(settings, reads, past, played, statuses, served)

    def _play(self, stack: Stack, settings: Settings, reads: meters.Reads, board: StatusBoard) -> Played:
        eligible = self.frame.select(self.demo.asks).to_series().fill_null(value=False).to_numpy()
        asks = plan_asks(
            self.times_us,
            eligible,
            self.frame[self.demo.candidate].to_numpy(),
            np.array(self.frame[self.demo.entity].to_list(), dtype=object),
            requests_per_s=self.options.requests_per_s,
            seconds=self.options.seconds,
            candidates_count=self.demo.candidates_count,
            popularity_rows=self.demo.popularity_rows,
            first=self.first,
            end_us=self.end_us,
            seed=self.options.seed,
        )
        clock = self._start_clock()
        player = Player(
            self.frame,
            self.times_us,
            asks,
            clock=clock,
            writer=topic_writer(settings, self.demo.event),
            url=stack.url,
            entity=self.demo.entity,
            request_id=self.demo.request_id,
            first=self.first,
            end=int(np.searchsorted(self.times_us, self.end_us)),
        )
        return asyncio.run(self._watch(player, stack, clock, reads, board))

    async def _watch(
        self,
        player: Player,
        stack: Stack,
        clock: AcceleratedClock | PacedClock,
        reads: meters.Reads,
        board: StatusBoard,
    ) -> Played:
        """Play; check the services and draw the figures every half second, read online records every two seconds."""
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(player.play())
        before = signal.getsignal(signal.SIGINT)
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        last_read_s = time.monotonic()
        async with httpx.AsyncClient(base_url=stack.url, timeout=10.0) as client:
            while not task.done():
                await asyncio.wait([task], timeout=SHOW_S)
                stack.check()
                statuses = await asyncio.to_thread(board.read)
                report = (await client.get("/v1/report")).json()
                self.screen.show(self._figures(player.played, clock, statuses, report))
                if time.monotonic() - last_read_s >= READ_S and not task.done():
                    last_read_s = time.monotonic()
                    await asyncio.to_thread(reads.take, clock.now_us())
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        if task.cancelled():
            raise KeyboardInterrupt
        return task.result()

    def _figures(
        self,
        played: Played,
        clock: AcceleratedClock | PacedClock,
        statuses: dict[str, dict[str, Any]],
        report: dict[str, Any],
    ) -> Figures:
        figures, train = self.figures, step_status(statuses, "train")
        elapsed_s = max((wall_us() - clock.started_wall_us) / 1e6, 1e-3)
        self.sent.add(played.events, wall_us())
        if train:
            self.learned.add(train["trained"], statuses["train"]["posted_us"])
        figures.events_per_s, figures.learned_per_s = self.sent.per_s, self.learned.per_s
        figures.elapsed_s, figures.event_time_us = elapsed_s, clock.now_us()
        figures.events = played.events
        figures.freshness_ms = step_status(statuses, "materialize").get("freshness_ms", {})
        figures.requests_ok, figures.requests_failed = played.ok, played.failed
        figures.requests_skipped = played.skipped
        figures.latency_ms = meters.spread(played.latency_ms, 50, 99)
        figures.examples = train
        figures.version, figures.swaps = report["model_version"], report["swaps"]["count"]
        figures.swap_ms = report["swaps"]["swap_ms"]
        figures.live, figures.frozen = marks(train.get("served", {})), marks(train.get("shadow", {}))
        if figures.live["auc"] is not None and figures.frozen["auc"] is not None:
            figures.gap_history.append(figures.live["auc"] - figures.frozen["auc"])
        figures.dead_letters = dead_letter_count(self.folder / "dead_letters")
        return figures

    def _drain(self, stack: Stack, board: StatusBoard, played: Played) -> dict[str, dict[str, Any]]:
        """Wait until every event is in the store; returns the last statuses."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while time.monotonic() < deadline:
            stack.check()
            statuses = board.read()
            positions = step_status(statuses, "materialize").get("positions", {})
            taken = sum(offset for name, offset in positions.items() if not name.endswith(history.HISTORY))
            if taken >= played.events:
                return statuses
            time.sleep(0.1)
        raise ServiceError(f"materialize has not caught up after {DRAIN_S_MAX:.0f} s; its log is in {self.folder}")

    def _report(
        self,
        settings: Settings,
        reads: meters.Reads,
        past: list[EventBatch],
        played: Played,
        statuses: dict[str, dict[str, Any]],
        served: dict[str, Any],
    ) -> Report:
        live = read_topic(settings, self.demo.event)
        impressions = read_topic(settings, self.demo.impression)
        directory = ModelDirectory(settings.model_dir)
        versions = [
            meters.ServedVersion(directory.manifest(version).offsets, first_us)
            for version, first_us in played.first_answer_us.items()
        ]
        took_s = meters.event_to_served_s(appended(live), versions)
        parity = meters.parity(reads.taken, log_frame([*past, *live]))
        logged = pl.concat([batch.frame for batch in impressions]) if impressions else pl.DataFrame()
        mixed = meters.mixed_versions(logged, directory, self.demo.learner) if logged.height else 0
        train, fresh = step_status(statuses, "train"), step_status(statuses, "materialize")
        trained_before = int(directory.manifest(1).metrics["rows"])
        names = ("joined", "positives", "late", "duplicates")
        return {
            "events_in": played.events,
            "events_per_s": round(played.events / self.figures.elapsed_s, 1),
            "feature_freshness_ms": {name: fresh["freshness_ms"][name] for name in ("p50", "p99")},
            "requests": {
                "ok": played.ok,
                "failed": played.failed,
                "skipped": played.skipped,
                "mixed_version": mixed,
            },
            "latency_ms": meters.spread(played.latency_ms, 50, 99),
            "examples": {**{name: train[name] for name in names}, "trained": train["trained"] - trained_before},
            "swaps": served["swaps"]["count"] - 1,  # without the first model's
            "swap_ms": {name: served["swaps"]["swap_ms"][name] for name in ("p50", "p99")},
            "event_to_served_model_s": {**meters.spread(took_s, 50, 95), "events": len(took_s)},
            "prequential": {"live": marks(train["served"]), "frozen": marks(train["shadow"])},
            "parity": {"checked": parity.checked, "mismatches": parity.mismatches, "examples": parity.examples[:5]},
            "dead_letters": dead_letter_count(self.folder / "dead_letters"),
            "speed": self.speed,
            "errors": played.errors[:5],
        }


def step_status(statuses: dict[str, dict[str, Any]], role: str) -> dict[str, Any]:
    """Status of a job's single step; empty before its first batch."""
    steps = statuses.get(role, {}).get("steps", [])
    return steps[0] if steps else {}


def dead_letter_count(folder: Path) -> int:
    """Number of dead letters in the files of `folder`."""
    return read_letters(folder).height if folder.is_dir() else 0


def read_topic(settings: Settings, event: Any) -> list[EventBatch]:
    """Read all events of a topic, up to its current end."""
    source = KafkaSource(settings.brokers, [event], until_end=True, config=settings.kafka)
    letters, known = dead_letters(settings), registry_of(settings)
    intake = Intake([event], dead_letters=letters, clock=FixedClock(2**60), registry=known)
    return list(read_to_end(source, intake))


def appended(batches: list[EventBatch]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Offsets (n,) and append times (n,) of each partition's events."""
    parts: dict[str, list[EventBatch]] = {}
    for batch in batches:
        parts.setdefault(batch.partition, []).append(batch)
    return {
        partition: (
            np.concatenate([batch.offsets for batch in its_batches]),
            np.concatenate([batch.appended_us for batch in its_batches if batch.appended_us is not None]),
        )
        for partition, its_batches in parts.items()
    }


def log_frame(batches: list[EventBatch]) -> pl.DataFrame:
    """Concatenate all batches into one frame with `_partition` and `_offset`."""
    return pl.concat(
        batch.frame.with_columns(
            pl.lit(batch.partition).alias("_partition"), pl.Series("_offset", batch.offsets, dtype=pl.Int64)
        )
        for batch in batches
    )


def _settings_of(environment: dict[str, str]) -> dict[str, Any]:
    names = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items()}
    return {name: value for name, value in names.items() if name in Settings.model_fields}
