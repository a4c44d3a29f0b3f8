"""Swaps under an open-loop load of 60 % of the capacity: none, one every 2 s, a burst of 2 a second.

    python -m benchmarks.serving.swaps                   200 swaps each under uvicorn: 10 minutes
    python -m benchmarks.serving.swaps --ray             under Ray Serve as well, and through Serve's `reconfigure`
    python -m benchmarks.serving.swaps --many 10000      so many swaps: median latency, memory and open files

The load is that of `headrace load`, whose latency counts from the scheduled time. Models sign their scores (signed.py),
so that an answer of two versions shows. Every request must be answered, by one version.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import orjson

from benchmarks.serving.signed import Checked, Signer
from benchmarks.serving.stage import ROOT, Stage, bodies, load, server, stage
from headrace.client import AsyncClient
from headrace.client.load import play

PACES = {"none": None, "one every 2 s": 2.0, "2 a second": 0.5}
"""Name -> seconds between two versions."""
CANDIDATES = 10
TIMEOUT_S = 5.0
ROWS = 20
"""Rows that `--many` prints."""


async def offered(port: int, rate_per_s: float, seconds: float) -> dict[str, Any]:
    """Figures of an open-loop run, with its `answers` and those that are `mixed`."""
    given = [orjson.loads(body) for body in bodies(64, CANDIDATES)]
    url = f"http://127.0.0.1:{port}"
    async with AsyncClient(url, timeout_s=TIMEOUT_S) as client, Checked(url, {}, 512) as connections:
        run = await play(client, connections, given, rate_per_s=rate_per_s, seconds=seconds, timeout_s=TIMEOUT_S)
        return {**run.summary(), "answers": connections.answers, "mixed": connections.mixed}


def compared(
    name: str, made: Stage, serve: Callable[[], AbstractContextManager[Any]], options: argparse.Namespace
) -> bool:
    """Print a line for each pace; True if no request failed and no answer is mixed."""
    is_right, base_ms = True, 0.0
    with serve() as (port, _):
        given = bodies(64, CANDIDATES)
        load(port, "/v1/rank", 16, 2.0, given)
        answers = load(port, "/v1/rank", 16, 4.0, given)["per_s"]
        if "200" not in answers:
            raise SystemExit(f"{name}: no request was answered: {answers}")
        capacity = answers["200"]
        print(f"{name}: capacity {capacity:.0f}/s at 16 callers")
        for pace, every_s in PACES.items():
            swaps, seconds = options.swaps, options.swaps * (every_s or 0.5)
            words = [made.env["HEADRACE_MODEL_DIR"], made.env["HEADRACE_REDIS_URL"], str(swaps), str(every_s)]
            before = _swaps(port)
            publisher = every_s and subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving.signed", *words], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            seen = asyncio.run(offered(port, options.share * capacity, seconds))
            if publisher:
                assert publisher.wait(60) == 0
            base_ms = base_ms or seen["p99_ms"]
            failed = f"{seen['sent'] - seen['ok']} of {seen['sent']} requests failed {seen['failed']}"
            mixed = f"{seen['mixed']} of {seen['answers']} answers mixed"
            slower = f"{seen['p99_ms'] / base_ms:.2f} times that without"
            ms = f"p50 {seen['p50_ms']} ms, p99 {seen['p99_ms']} ms ({slower}), max {seen['max_ms']} ms"
            late = f"generator late {seen['late_p99_ms']} ms"
            print(f"  {pace:14} {_swaps(port) - before} swaps; {failed}; {mixed}; {ms}; {late}", flush=True)
            is_right &= seen["sent"] == seen["ok"] and seen["mixed"] == 0
    return is_right


def _swaps(port: int) -> int:
    return int(httpx.get(f"http://127.0.0.1:{port}/v1/report", timeout=60).json()["swaps"]["count"])


def many(made: Stage, signer: Signer, count: int) -> bool:
    """Swap `count` times, each as soon as the last is live; True if memory and open files are flat."""
    rows = []
    print(f"{'swaps':>7}  p50 ms  resident MB  open files")
    with (
        server(made, ROOT, "-m", "benchmarks.serving.replicas", "eager") as (port, process),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        for done in range(1, count + 1):
            version = signer.publish()
            while client.get("/v1/model").headers["x-model-version"] != str(version):
                time.sleep(0.001)
            if done % max(count // ROWS, 1) == 0:
                rows.append((_median_ms(client), process.memory_info().rss / 1e6, process.num_fds()))
                print(f"{done:>7}  {rows[-1][0]:6.2f}  {rows[-1][1]:11.0f}  {rows[-1][2]:10}", flush=True)
    latency_ms, resident_mb, files = (list(column) for column in zip(*rows, strict=True))
    half = len(rows) // 2
    growth = statistics.median(resident_mb[half:]) / statistics.median(resident_mb[:half])
    slower = statistics.median(latency_ms[half:]) / statistics.median(latency_ms[:half])
    print(f"second half / first half: memory {growth:.3f}, p50 {slower:.2f}; open files {min(files)} to {max(files)}")
    return growth < 1.05 and max(files) - min(files) < 8


def _median_ms(client: httpx.Client) -> float:
    """Median latency of 200 rankings, one after the other."""

    def latencies() -> Iterator[float]:
        for body in bodies(200, CANDIDATES):
            began_s = time.perf_counter()
            client.post("/v1/rank", content=body).raise_for_status()
            yield (time.perf_counter() - began_s) * 1e3

    return statistics.median(latencies())


def main() -> None:
    parser = argparse.ArgumentParser(description="swaps under load")
    parser.add_argument("--swaps", type=int, default=200, help="of each pace")
    parser.add_argument("--ray", action="store_true", help="under Ray Serve as well, and through its reconfigure")
    parser.add_argument("--share", type=float, default=0.6, help="of the capacity that the load is")
    parser.add_argument("--many", type=int, help="so many swaps instead, one after the other")
    options = parser.parse_args()
    with stage(HEADRACE_REQUEST_TIMEOUT_S=str(TIMEOUT_S)) as made:
        signer = Signer(made.folder / "models", made.env["HEADRACE_REDIS_URL"])
        signer.publish()
        if options.many:
            sys.exit(not many(made, signer, options.many))
        sides = {"uvicorn": lambda: server(made, ROOT)}
        if options.ray:
            sides["Ray Serve"] = lambda: server(made, ROOT, "-m", "headrace.cli", "serve")
            words = ("-m", "benchmarks.serving.replicas", "reconfigure")
            sides["Ray Serve, reconfigure"] = lambda: server(made, ROOT, *words)
        are_right = [compared(name, made, serve, options) for name, serve in sides.items()]
        sys.exit(not all(are_right))


if __name__ == "__main__":
    main()
