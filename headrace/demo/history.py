"""The history of the log, before the demo goes live: fill the store and train a first model."""

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl

import headrace
from headrace.clock import FixedClock
from headrace.demo.declaration import Demo
from headrace.demo.screen import Screen
from headrace.features.store import OnlineStore
from headrace.pipelines import Batch, EventBatch, Intake, Materializer
from headrace.pipelines.backfill import hand_over
from headrace.pipelines.wiring import dead_letters
from headrace.schemas import spec_of
from headrace.settings import Settings

BACKFILL_ROWS = 16_384  # rows per batch; larger batches leave the allocator's fast path
BACKFILL_FLUSH_S = (2.0, 10.0)  # there is no reader yet, and rare flushes merge many events of a key into one write
HISTORY = "history"


def history_batches(
    demo: Demo, frame: pl.DataFrame, settings: Settings, golive_us: int, screen: Screen
) -> list[EventBatch]:
    """Decode the rows of `frame` into batches of one partition; bad rows go to the dead letters."""
    topic = spec_of(demo.event).topic
    intake = Intake([demo.event], dead_letters=dead_letters(settings), clock=FixedClock(golive_us))
    batches = []
    for begin in range(0, frame.height, BACKFILL_ROWS):
        screen.progress("reading the log", begin, frame.height)
        rows = frame[begin : begin + BACKFILL_ROWS]
        end = begin + rows.height
        offsets = np.arange(begin, end)
        batches.append(intake.decode(Batch(topic, f"{topic}/{HISTORY}", offsets, end, frame=rows)))
    return batches


def backfill(demo: Demo, batches: list[EventBatch], store: OnlineStore, screen: Screen) -> None:
    """Materialize the history into the store; the live flow continues at the start of the topic."""
    started = time.monotonic()
    materializer = Materializer(demo.learner.views, store, flush_s=BACKFILL_FLUSH_S)
    rows, total = 0, sum(batch.frame.height for batch in batches)
    for batch in batches:
        screen.progress("backfill", rows, total)
        materializer.apply(batch)
        materializer.maybe_flush()
        rows += batch.frame.height
    materializer.flush()
    topic = spec_of(demo.event).topic
    hand_over(demo.learner.views, store, {f"{topic}/{number}": 0 for number in range(demo.partitions)})
    seconds = time.monotonic() - started
    screen.say(f"backfill: {rows:,} events into the online store in {seconds:.1f} s ({rows / seconds:,.0f}/s)")


def warm_start(
    demo: Demo, batches: list[EventBatch], settings: Settings, cache: Path, rows: int, screen: Screen
) -> None:
    """Train on the newest `rows` of history, and store model and training state where the live job reads them.

    Both are cached in `cache`, by a digest of the declarations, the code and the log: later runs copy them.
    """
    kept = cache / _name(demo, batches, rows)
    if not (kept / "done").is_file():
        shutil.rmtree(kept, ignore_errors=True)
        _train(demo, batches, settings, kept, rows, screen)
        (kept / "done").touch()
    for source, target in (("models", settings.model_dir), ("state", settings.state_dir)):
        shutil.copytree(kept / source, target, dirs_exist_ok=True)


def _train(demo: Demo, batches: list[EventBatch], settings: Settings, kept: Path, rows: int, screen: Screen) -> None:
    step = demo.make_step(settings.model_copy(update={"model_dir": kept / "models", "state_dir": kept / "state"}))
    frame = pl.concat([batch.frame for batch in batches])
    learned_from = frame[max(frame.height - rows, 0), spec_of(demo.event).time]

    def report(what: str, done: int, total: int | None, _figures: object) -> None:
        screen.progress(f"warm start, {what}: {step.trainer.trained:,} examples learned", done, total or frame.height)

    done = headrace.train(step, {demo.event: frame}, since=learned_from, topic_follows=True, report=report)
    screen.say(
        f"warm start: {done.examples:,} examples learned in {done.seconds:.0f} s"
        f" ({done.examples / done.seconds:,.0f}/s); kept for next time"
    )


def _name(demo: Demo, batches: list[EventBatch], rows: int) -> str:
    learner = demo.learner
    parts = [
        learner.name,
        repr(learner.model),
        learner.inputs.fingerprint,
        sorted(learner.fingerprints().items()),
        rows,
    ]
    digest = hashlib.sha256(repr(parts).encode())
    for source in sorted(Path(headrace.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())  # the state may differ between versions of the code
    for batch in batches:
        digest.update(batch.frame.hash_rows(seed=0).to_numpy().tobytes())
    return f"warm-{digest.hexdigest()[:16]}"
