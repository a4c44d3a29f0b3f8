"""Useful answers a second with more callers than a replica can serve, beside the peak: this checkout and a baseline.

    python -m benchmarks.serving.overload --baseline ../before

Each caller sends its next request as soon as the last is answered or refused.
"""

from benchmarks.serving.stage import ROOT, arguments, bodies, load, server, stage

PEAK = (16, 64)
OVERLOAD = (300, 512)


def main() -> None:
    options = arguments("goodput under overload", 6.0)
    given = [body for count in (4, 10) for body in bodies(64, count)]
    sides = {"ours": ROOT, **({"baseline": options.baseline.resolve()} if options.baseline else {})}
    with stage() as made:
        for name, checkout in sides.items():
            with server(made, checkout) as (port, _):
                load(port, "/v1/rank", 16, 2.0, given)
                seen = {callers: load(port, "/v1/rank", callers, options.seconds, given) for callers in PEAK + OVERLOAD}
            peak = max(seen[callers]["per_s"].get("200", 0.0) for callers in PEAK)
            print(f"{name}: peak {peak:.0f}/s")
            for callers in OVERLOAD:
                per_s, p99_ms = seen[callers]["per_s"], seen[callers]["ms"]["p99"]
                print(f"  {callers} callers: {per_s.get('200', 0.0) / peak:.0%} of it, p99 {p99_ms} ms; {per_s}")


if __name__ == "__main__":
    main()
