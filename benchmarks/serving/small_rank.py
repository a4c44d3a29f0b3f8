"""Rankings of 4 to 10 candidates a second, of one replica under uvicorn: this checkout, a baseline, an empty handler.

    python -m benchmarks.serving.small_rank --baseline ../before

This checkout three times: all features from Redis; those of the candidates resident (HEADRACE_RESIDENT_MB), read again
each second; and from Redis with threads on any CPU (HEADRACE_ONE_CPU=false). Every answer must be 200. CPU is that of
the server's process, load and Redis apart. All servers run at once and take turns; best of the rounds.
"""

import random
from collections import defaultdict
from contextlib import ExitStack
from itertools import product
from typing import NamedTuple

import psutil

from benchmarks.serving.stage import ROOT, arguments, bodies, cpu_s, load, server, stage

CALLERS = (1, 16, 64)
OURS = {"ours": {}, "resident": {"HEADRACE_RESIDENT_MB": "256"}, "any CPU": {"HEADRACE_ONE_CPU": "false"}}
"""Name of a side -> settings of its server."""


class Seen(NamedTuple):
    """Answers a second, CPU of the server's process for each, and the latency that 1 in 100 exceeds."""

    per_s: float
    cpu_ms: float
    p99_ms: float


def main() -> None:
    options = arguments("requests a second of small rankings", 4.0)
    given = [body for count in (4, 6, 8, 10) for body in bodies(64, count)]
    random.Random(0).shuffle(given)
    baseline = {"baseline": (options.baseline.resolve(), {})} if options.baseline else {}
    sides = {**{name: (ROOT, settings) for name, settings in OURS.items()}, **baseline, "empty": (None, {})}
    rounds: dict[tuple[str, int], list[Seen]] = defaultdict(list)
    with ExitStack() as stack:
        made = stack.enter_context(stage(HEADRACE_REQUEST_TIMEOUT_S="5"))  # a stall of the machine is no refusal
        servers = {
            name: stack.enter_context(server(made, checkout, **settings))
            for name, (checkout, settings) in sides.items()
        }
        for port, _ in servers.values():
            load(port, "/v1/rank", 16, 2.0, given)
        for _, callers, (name, (port, process)) in product(range(options.rounds), CALLERS, servers.items()):
            rounds[name, callers].append(measured(port, process, callers, options.seconds, given))
    best = {side: max(seen) for side, seen in rounds.items()}
    print(f"{'':10}" + "".join(f"{callers:>4} callers: req/s  CPU ms  p99 ms" for callers in CALLERS))
    for name in sides:
        cells = [best[name, callers] for callers in CALLERS]
        print(f"{name:10}" + "".join(f"{seen.per_s:>19.0f}{seen.cpu_ms:>8.2f}{seen.p99_ms:>8.1f}" for seen in cells))
    if options.baseline:
        for name in OURS:
            print_ratios(best, name, "baseline")
    print_ratios(best, "ours", "any CPU")
    for name in OURS:
        over_ms = best[name, 16].cpu_ms - best["empty", 16].cpu_ms
        print(f"CPU a request of {name} over the empty handler at 16 callers: {over_ms:.3f} ms")


def print_ratios(best: dict[tuple[str, int], Seen], name: str, other: str) -> None:
    ratios = [f"{best[name, c].per_s / best[other, c].per_s:.2f} at {c}" for c in CALLERS]
    print(f"{name} / {other}: {', '.join(ratios)}")


def measured(port: int, process: psutil.Process, callers: int, seconds: float, given: list[str]) -> Seen:
    before_s = cpu_s(process)
    seen = load(port, "/v1/rank", callers, seconds, given)
    assert set(seen["per_s"]) == {"200"}, seen["per_s"]
    per_s = seen["per_s"]["200"]
    played_s = seconds + min(1.0, seconds / 4)  # its warm-up is not counted, but costs CPU
    return Seen(per_s, (cpu_s(process) - before_s) * 1e3 / (per_s * played_s), seen["ms"]["p99"])


if __name__ == "__main__":
    main()
