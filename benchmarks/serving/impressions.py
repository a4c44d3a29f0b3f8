"""What the log of impressions costs a small ranking: CPU of a request with it, and of the same replica without.

    python -m benchmarks.serving.impressions

Both replicas run at once under uvicorn and take turns, 16 callers each; the least CPU of the rounds counts. The aim is
15 % of the path.
"""

from collections import defaultdict
from contextlib import ExitStack

from benchmarks.serving.small_rank import Seen, measured
from benchmarks.serving.stage import ROOT, arguments, bodies, load, server, stage

CALLERS = 16
WITHOUT = ("-m", "benchmarks.serving.replicas", "eager")


def main() -> None:
    options = arguments("CPU of impressions", 4.0)
    given = [body for count in (4, 6, 8, 10) for body in bodies(64, count)]
    seen: dict[str, list[Seen]] = defaultdict(list)
    with ExitStack() as stack:
        made = stack.enter_context(stage(HEADRACE_REQUEST_TIMEOUT_S="5"))
        sides = {
            "with": stack.enter_context(server(made, ROOT)),
            "without": stack.enter_context(server(made, ROOT, *WITHOUT)),
        }
        for port, _ in sides.values():
            load(port, "/v1/rank", CALLERS, 2.0, given)
        for _ in range(options.rounds):
            for name, (port, process) in sides.items():
                seen[name].append(measured(port, process, CALLERS, options.seconds, given))
    cpu_ms = {name: min(each.cpu_ms for each in rounds) for name, rounds in seen.items()}
    for name, rounds in seen.items():
        print(f"{name:8} {max(each.per_s for each in rounds):6.0f}/s, {cpu_ms[name]:.3f} ms of CPU a request")
    share = (cpu_ms["with"] - cpu_ms["without"]) / cpu_ms["with"]
    print(f"impressions: {share:.0%} of the CPU of a ranking")


if __name__ == "__main__":
    main()
