"""Rankings of 4 to 10 candidates a second, of one replica under uvicorn: this checkout, a baseline, an empty handler.

    python -m benchmarks.serving.small_rank --baseline ../before

Every answer must be 200. CPU is that of the server's process, load and Redis apart. Rounds take turns, best of three.
"""

import random

from benchmarks.serving.stage import ROOT, arguments, bodies, cpu_s, load, server, stage

CALLERS = (1, 16, 64)
ROUNDS = 3


def main() -> None:
    options = arguments("requests a second of small rankings", 4.0)
    given = [body for count in (4, 6, 8, 10) for body in bodies(64, count)]
    random.Random(0).shuffle(given)
    sides = {"ours": ROOT, **({"baseline": options.baseline.resolve()} if options.baseline else {}), "empty": None}
    best: dict[tuple[str, int], tuple[float, float, float | None]] = {}
    with stage() as made:
        for _ in range(ROUNDS):
            for name, checkout in sides.items():
                with server(made, checkout) as (port, process):
                    load(port, "/v1/rank", 16, 2.0, given)
                    for callers in CALLERS:
                        before = cpu_s(process)
                        seen = load(port, "/v1/rank", callers, options.seconds, given)
                        assert set(seen["per_s"]) == {"200"}, f"{name}: {seen['per_s']}"
                        per_s = seen["per_s"]["200"]
                        cpu_ms = (cpu_s(process) - before) * 1e3 / (per_s * (options.seconds + min(1, options.seconds / 4)))
                        best[name, callers] = max(best.get((name, callers), (0, 0, None)), (per_s, cpu_ms, seen["ms"]["p99"]))
    print(f"{'':10}" + "".join(f"{callers:>5} callers: req/s  CPU ms  p99 ms" for callers in CALLERS))
    for name in sides:
        row = "".join(f"{best[name, c][0]:>20.0f}{best[name, c][1]:>8.2f}{best[name, c][2]:>8.1f}" for c in CALLERS)
        print(f"{name:10}{row}")
    if options.baseline:
        print("ours / baseline: " + ", ".join(f"{best['ours', c][0] / best['baseline', c][0]:.2f} at {c}" for c in CALLERS))
    over = best["ours", 16][1] - best["empty", 16][1]
    print(f"CPU a request over the empty handler at 16 callers: {over:.3f} ms")


if __name__ == "__main__":
    main()
