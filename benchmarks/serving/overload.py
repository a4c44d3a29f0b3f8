"""Useful answers a second with more callers than a replica can serve, beside the peak: this checkout and a baseline.

    python -m benchmarks.serving.overload --baseline ../before

Each caller sends its next request as soon as the last is answered or refused. The latency is that of answers, from the
moment of sending; a connection's first request includes the wait until it is accepted.
"""

from benchmarks.serving.stage import ROOT, arguments, bodies, load, server, stage

PEAK = (16, 64)
OVERLOAD = (300, 512)
DEADLINE_MS = 1_000.0
"""The default of HEADRACE_REQUEST_TIMEOUT_S."""


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
            if not peak:
                raise SystemExit(f"{name}: no request was answered: {[seen[callers]['per_s'] for callers in PEAK]}")
            print(f"{name}: peak {peak:.0f}/s")
            for callers in OVERLOAD:
                per_s, p99_ms = seen[callers]["per_s"], seen[callers]["ms"]["p99"]
                verdict = "within" if p99_ms is not None and p99_ms <= DEADLINE_MS else "beyond"
                goodput = per_s.get("200", 0.0) / peak
                print(f"  {callers} callers: {goodput:.0%} of it, p99 {p99_ms} ms, {verdict} the deadline; {per_s}")


if __name__ == "__main__":
    main()
