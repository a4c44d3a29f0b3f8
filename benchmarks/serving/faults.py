"""Kills under load: a replica, Redis, the broker, the publisher of models. What failed, and how long until it was over.

    python -m benchmarks.serving.faults --seconds 20
    python -m benchmarks.serving.faults --plain              under uvicorn, without the kill of a replica

Ray Serve with two replicas and an open-loop load; each fault is a SIGKILL amid a run of its own. Only requests that
were under way in the killed replica may fail; without Redis requests are refused until it is back, in milliseconds;
the broker and the publisher are not missed by any request. The broker is the one in memory: it comes back without the
ids of its producers, so that a replica begins with another client once its messages time out, after a minute. The
publisher stands for the trainer, whose models would not be signed: a replica sees nothing of either but the versions
that it publishes.
"""

import argparse
import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import orjson
import polars as pl

from benchmarks.serving.signed import Checked, Signer
from benchmarks.serving.stage import ROOT, Stage, bodies, server, stage
from headrace.client import AsyncClient
from headrace.client.load import OK, play

REPLICAS = 2
TIMEOUT_S = 2.0
AWAY_S = 3.0
"""Seconds that Redis and the broker stay away."""
RECOVERY_S_MAX = 120.0


@dataclass(frozen=True)
class Fault:
    """When it was done, in seconds since the load's start, and how long until all was as before; inf: it never was."""

    killed_s: float
    recovery_s: float


class Bench:
    """The served project, and the faults that may come over it. Each is called in a thread amid the load."""

    def __init__(self, made: Stage, port: int) -> None:
        self.made = made
        self.url = f"http://127.0.0.1:{port}"
        self.signer = Signer(made.folder / "models", made.env["HEADRACE_REDIS_URL"])
        self.killed_s = 0.0

    def kill(self, pid: int | None) -> None:
        """Kill a process, and note when."""
        assert pid is not None
        self.killed_s = time.perf_counter()
        os.kill(pid, signal.SIGKILL)

    def replicas(self) -> set[int]:
        """Process ids of the replicas that answered 40 looks."""
        pids = set()
        for _ in range(40):
            answer = httpx.get(f"{self.url}/v1/model", timeout=5)
            if answer.status_code == 200:
                pids.add(int(answer.json()["replica"]))
        return pids

    def replica(self) -> Callable[[], bool]:
        """Kill a replica; over once two answer, none of them the killed one."""
        pid = min(self.replicas())
        self.kill(pid)
        return lambda: len(self.replicas() - {pid}) == REPLICAS

    def redis(self) -> Callable[[], bool]:
        """Kill Redis, and start it again on its data after a while; over once a ranking is answered."""
        server = self.made.redis
        self.kill(server.pid)
        time.sleep(AWAY_S)
        server.stop()
        server.start()
        return self.ranks

    def broker(self) -> Callable[[], bool]:
        """Kill the broker, and start it again, empty, after a while; over once impressions are delivered to it."""
        server = self.made.broker
        self.kill(server.pid)
        time.sleep(AWAY_S)
        before = self.delivered()
        server.stop()
        server.start()
        return lambda: self.ranks() and self.delivered() > before  # an impression to deliver, should the load be over

    def delivered(self) -> float:
        """Impressions that the broker has acknowledged, of all replicas."""
        page = httpx.get(f"{self.url}/metrics", timeout=5).text
        return float(page.partition("\nheadrace_impressions_delivered_total ")[2].partition("\n")[0] or 0)

    def publisher(self) -> Callable[[], bool]:
        """Kill a publisher of ten versions a second; over once the next publisher's version is live."""
        words = [self.made.env["HEADRACE_MODEL_DIR"], self.made.env["HEADRACE_REDIS_URL"], "1000", "0.1"]
        publisher = subprocess.Popen([sys.executable, "-m", "benchmarks.serving.signed", *words], cwd=ROOT)
        time.sleep(AWAY_S)
        self.kill(publisher.pid)
        publisher.wait()
        version = self.signer.publish()
        return lambda: httpx.get(f"{self.url}/v1/model", timeout=5).headers["x-model-version"] == str(version)

    def ranks(self) -> bool:
        """Whether a ranking is answered."""
        return httpx.post(f"{self.url}/v1/rank", content=bodies(1, 4)[0], timeout=5).status_code == 200


def struck(bench: Bench, do: Callable[[], Callable[[], bool]], began_s: float) -> Fault:
    """Do a fault, and wait until it is over."""
    is_over = do()
    killed_s = bench.killed_s - began_s
    done_s = time.perf_counter()
    while True:
        try:
            if is_over():
                break
        except httpx.HTTPError:
            pass
        if time.perf_counter() - done_s > RECOVERY_S_MAX:
            return Fault(killed_s, math.inf)
        time.sleep(0.05)
    return Fault(killed_s, time.perf_counter() - done_s)


async def run(bench: Bench, do: Callable[[], Callable[[], bool]], rate_per_s: float, seconds: float) -> bool:
    """Offer the load, strike amid it, print what came of it; True if it is as it should be."""
    given = [orjson.loads(body) for body in bodies(64, 6)]
    async with AsyncClient(bench.url, timeout_s=TIMEOUT_S) as client, Checked(bench.url, {}, 512) as connections:
        load = asyncio.create_task(
            play(client, connections, given, rate_per_s=rate_per_s, seconds=seconds, timeout_s=TIMEOUT_S)
        )
        began_s = time.perf_counter()
        await asyncio.sleep(seconds / 4)
        fault = await asyncio.to_thread(struck, bench, do, began_s)
        played = await load
    ended_s = pl.col("scheduled_s") + pl.col("latency_ms") / 1e3
    failed = played.requests.filter(pl.col("outcome") != OK)
    under_way = failed.filter((pl.col("scheduled_s") <= fault.killed_s + 0.1) & (ended_s >= fault.killed_s - 0.1))
    refused = failed.filter(pl.col("outcome") == "store_unavailable")
    summary = played.summary()
    print(
        f"{do.__name__:10} {summary['sent']} sent, {failed.height} failed ({summary['failed'] or 'none'}), "
        f"{under_way.height} of them under way at the kill; {connections.mixed} mixed; over after "
        f"{fault.recovery_s:.1f} s; p50 {summary['p50_ms']} ms, p99 {summary['p99_ms']} ms",
        flush=True,
    )
    if do.__name__ == "replica" and failed.height:
        after_ms = (failed["scheduled_s"] - fault.killed_s) * 1e3
        print(f"{'':10} failed: scheduled {after_ms.min():.0f} to {after_ms.max():.0f} ms after the kill")
    if refused.height:
        print(f"{'':10} refusals without Redis: median {refused['latency_ms'].median():.1f} ms")
    allowed = under_way.height if do.__name__ == "replica" else refused.height if do.__name__ == "redis" else 0
    return failed.height <= allowed and connections.mixed == 0 and fault.recovery_s < math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description="kills under load")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load for each fault")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--plain", action="store_true", help="one replica under uvicorn, which is not killed")
    options = parser.parse_args()
    with stage(aof=True, HEADRACE_REQUEST_TIMEOUT_S="1", HEADRACE_REPLICAS=str(REPLICAS)) as made:
        Signer(made.folder / "models", made.env["HEADRACE_REDIS_URL"]).publish()
        command = ("-m", "headrace.cli", "serve", *(["--plain"] if options.plain else []))
        with server(made, ROOT, *command) as (port, _):
            bench = Bench(made, port)
            faults = [bench.publisher, bench.broker, *([] if options.plain else [bench.replica]), bench.redis]
            are_right = [asyncio.run(run(bench, do, options.rate, options.seconds)) for do in faults]
    sys.exit(not all(are_right))


if __name__ == "__main__":
    main()
