"""What the serving benchmarks run on: this repository's retail project over a filled Redis, a broker and a model.

Servers are processes: of this checkout, or of another one (`--baseline DIR`, a git worktree) with the same project.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import psutil

from headrace.features import hash_text
from headrace.learners import ModelDirectory, OnlineLearner, Snapshot
from headrace.local import EmbeddedBroker, EmbeddedRedis, free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CUSTOMERS, ITEMS, EVENTS = 2_000, 1_000, 60_000
SEED = 7


@dataclass(frozen=True)
class Stage:
    """Addresses that servers need, as environment variables, and the services behind them."""

    env: dict[str, str]
    folder: Path
    redis: EmbeddedRedis
    broker: EmbeddedBroker


def arguments(description: str, seconds: float, rounds: int = 3) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository, served beside it")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each measurement, where requests are counted")
    return parser.parse_args()


@contextlib.contextmanager
def stage(items: int = ITEMS, *, aof: bool = False, **settings: str) -> Iterator[Stage]:
    """Start Redis and a broker, and fill them; `settings` are further variables for the servers.

    `aof`: whether Redis has its data again after it was killed.
    """
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="hrb") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        redis = stack.enter_context(EmbeddedRedis(folder / "redis", aof=aof))
        topics = {"engagements": 1, "impressions": 1, "dead-letters": 1}
        broker = stack.enter_context(EmbeddedBroker(folder / "broker", topics=topics))
        env = {
            **os.environ,
            "HEADRACE_REDIS_URL": redis.url,
            "HEADRACE_BROKERS": broker.bootstrap,
            "HEADRACE_MODEL_DIR": str(folder / "models"),
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_LOG_JSON": "true",
            **settings,
        }
        made = Stage(env, folder, redis, broker)
        _fill(made, items)
        _publish(folder / "models", redis.url)
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
            f"Python {platform.python_version()}; seed {SEED}; {CUSTOMERS} customers, {items} items, {EVENTS} events"
        )
        yield made


def _fill(made: Stage, items: int) -> None:
    """Records of customers and items, materialised from a made-up log of the last 30 days."""
    rng, now = np.random.default_rng(SEED), datetime.now(UTC)
    frame = pl.DataFrame(
        {
            "event_id": [f"e{i}" for i in range(EVENTS)],
            "event_time": [now - timedelta(seconds=float(s)) for s in np.sort(rng.random(EVENTS) * 30 * 86_400)[::-1]],
            "customer_id": rng.integers(0, CUSTOMERS, EVENTS),
            "item_id": [f"item {i}" for i in (rng.random(EVENTS) ** 2 * items).astype(int)],
            "action": pl.Series(["purchase", "purchase", "purchase", "cancel"])[rng.integers(0, 4, EVENTS)],
            "quantity": rng.integers(1, 20, EVENTS),
            "unit_price": np.round(rng.random(EVENTS) * 50, 2),
            "country": ["UK"] * EVENTS,
            "request_id": pl.Series([None] * EVENTS, dtype=pl.String),
        },
        schema_overrides={"event_time": pl.Datetime("us", "UTC")},
    )
    frame.write_parquet(made.folder / "log.parquet")
    views = ("features.customer:CustomerActivity", "features.item:ItemActivity")
    store = made.env["HEADRACE_REDIS_URL"]
    command = ["materialize", *views, "--events", str(made.folder / "log.parquet"), "--store", store, "--until-end"]
    env = {**made.env, "HEADRACE_PROJECT": str(ROOT), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "headrace.cli", *command], env=env, cwd=made.folder, check=True, capture_output=True
    )


def _publish(folder: Path, redis_url: str) -> None:
    from learners.next_item import NextItem

    learner = OnlineLearner(NextItem, SEED)
    learner.tables["item"].admit(hash_text([f"item {i}" for i in range(ITEMS)]), 1)
    ModelDirectory(folder, redis_url).publish(Snapshot.of(learner))


def bodies(count: int, candidates: int) -> list[str]:
    """Requests of rankings for customers at random, each of that many items."""
    rng = np.random.default_rng(SEED)
    return [
        json.dumps(
            {
                "entity": {"customer_id": int(rng.integers(0, CUSTOMERS))},
                "candidates": [f"item {i}" for i in rng.choice(ITEMS, candidates, replace=candidates > ITEMS)],
            }
        )
        for _ in range(count)
    ]


@contextlib.contextmanager
def server(made: Stage, checkout: Path | None, *command: str, **settings: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server of `checkout`, or the empty handler, once it answers: its port and process.

    `command`: words after the interpreter instead of those of `headrace serve --plain`; one of `benchmarks` gets the
    port as well. `settings` are further variables for it.
    """
    port = free_port()
    words = list(command or ("-m", "headrace.cli", "serve", "--plain"))
    if checkout is None:
        words = [str(HERE / "empty.py")]
    if "headrace.cli" not in words:
        words.append(str(port))
    root = checkout or ROOT
    env = {**made.env, "HEADRACE_PORT": str(port), "HEADRACE_PROJECT": str(root), "PYTHONPATH": str(root), **settings}
    with (made.folder / f"serve-{port}.log").open("wb") as out:
        process = subprocess.Popen([sys.executable, *words], env=env, cwd=made.folder, stdout=out, stderr=out)
        try:
            try:
                _until_ready(process, port, "/" if checkout is None else "/readyz")
            except RuntimeError as exc:
                raise RuntimeError(f"{exc}: {Path(out.name).read_text(errors='replace')[-2_000:]}") from None
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(120)  # Ray takes its time


def _until_ready(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the server does not get ready")


def load(port: int, path: str, callers: int, seconds: float, given: list[str]) -> dict:
    """What load.py prints, run as a process of its own."""
    words = [sys.executable, str(HERE / "load.py"), str(port), path, str(callers), str(seconds), *given]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
