"""Small rankings a second under Ray Serve, one replica: `headrace serve`, Serve by its defaults, a chain of two.

    python -m benchmarks.serving.under_ray

Every answer must be 200. `headrace serve` writes impressions, its rivals none. One after the other, for each brings a
Ray of its own; best of the rounds. The aim is 1,500/s from 16 connections.
"""

from benchmarks.serving.stage import ROOT, arguments, bodies, load, server, stage

CALLERS = (1, 16, 64)
SIDES = {
    "headrace serve": ("-m", "headrace.cli", "serve"),
    "default Serve": ("-m", "benchmarks.serving.replicas", "default"),
    "chain of two": ("-m", "benchmarks.serving.replicas", "chain"),
}


def main() -> None:
    options = arguments("small rankings under Ray Serve", 4.0)
    given = [body for count in (4, 6, 8, 10) for body in bodies(64, count)]
    best: dict[str, dict[int, float]] = {}
    with stage(HEADRACE_REQUEST_TIMEOUT_S="5") as made:
        print(f"{'':16}" + "".join(f"{callers:>4} callers: req/s  p99 ms" for callers in CALLERS))
        for name, command in SIDES.items():
            with server(made, ROOT, *command) as (port, _):
                load(port, "/v1/rank", 16, 2.0, given)
                cells = dict.fromkeys(CALLERS, (0.0, 0.0))
                for callers in CALLERS * options.rounds:
                    seen = load(port, "/v1/rank", callers, options.seconds, given)
                    assert set(seen["per_s"]) == {"200"}, (name, seen["per_s"])
                    cells[callers] = max(cells[callers], (seen["per_s"]["200"], seen["ms"]["p99"]))
            best[name] = {callers: per_s for callers, (per_s, _) in cells.items()}
            print(
                f"{name:16}" + "".join(f"{per_s:>19.0f}{p99_ms:>8.1f}" for per_s, p99_ms in cells.values()), flush=True
            )
    for rival in list(SIDES)[1:]:
        ratios = [f"{best['headrace serve'][c] / best[rival][c]:.1f} at {c}" for c in CALLERS]
        print(f"headrace serve / {rival}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
