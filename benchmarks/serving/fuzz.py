"""Generated requests against the served contract: no 5xx, memory that stays, and valid calls that reach the model.

    python -m venv ../fuzz && ../fuzz/bin/pip install schemathesis
    python -m benchmarks.serving.fuzz --schemathesis ../fuzz/bin/st --cases 20000

Three soaks of one server, whose own counters say what came of them: calls that the description allows, of rank and
score; calls that it allows and that it forbids, of all routes; and bytes at random, some of them HTTP. Schemathesis
stays in an environment of its own, for it wants other versions than the engine.
"""

import argparse
import contextlib
import random
import re
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
import psutil

from benchmarks.serving.stage import ROOT, SEED, bodies, server, stage

REACH_MIN = 0.5
"""Least share of the valid calls that the model answers."""
GROWTH_MAX = 1.05
"""Resident memory after the last soak, in terms of that after the first half of the second."""
_SAMPLE = re.compile(r'headrace_requests_total\{route="([^"]*)",status="(\d+)"\} (\S+)')


def counts(port: int) -> Counter[tuple[str, int]]:
    """Answered requests by route and status."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    return Counter({(route, int(status)): int(float(value)) for route, status, value in _SAMPLE.findall(text)})


def schemathesis(port: int, program: Path, mode: str, examples: int, *paths: str) -> None:
    """Run generated calls of `mode`, so many an operation; what it finds is printed, and the counters decide."""
    only = [word for path in paths for word in ("--include-path", path)]
    words = [program.absolute(), "run", f"http://127.0.0.1:{port}/openapi.json", "--mode", mode, "-n", str(examples)]
    patient = (
        "-H",
        "X-Request-Timeout-Ms: 60000",
    )  # generated ones, of 1 ms too, would end most calls before the model
    more = ("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--continue-on-failure")
    quiet = ("--no-color", "--no-shrink", "--warnings", "off", "--generation-database", "none", "--seed", str(SEED))
    with tempfile.TemporaryDirectory(prefix="hrb") as folder:  # it leaves what it finds where it runs
        every = [*words, *only, *patient, *more, *quiet]
        ended = subprocess.run(every, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode not in {0, 1}:
        raise SystemExit(f"schemathesis ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    if ended.returncode:
        print(ended.stdout[-4000:])


def random_bytes(port: int, count: int) -> None:
    """Send `count` messages of noise, of broken HTTP, and of a sound head with a broken body."""
    rng = random.Random(SEED)  # a soak, not a secret
    sound = bodies(1, 4)[0].encode()
    for _ in range(count):
        noise = rng.randbytes(rng.randrange(1, 2_000))
        cut = bytearray(sound)
        for _ in range(rng.randrange(4)):
            cut[rng.randrange(len(cut))] = rng.randrange(256)
        body = rng.choice([noise, bytes(cut), bytes(cut[: rng.randrange(len(cut))])])
        head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        with (
            contextlib.suppress(OSError),  # the server may close a connection amid what is sent
            socket.create_connection(("127.0.0.1", port), 10) as connection,
        ):
            connection.settimeout(10)
            connection.sendall(rng.choice([noise, head + body, head[: rng.randrange(1, len(head))] + noise]))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description="generated requests")
    parser.add_argument("--schemathesis", type=Path, required=True, help="its program `st`")
    parser.add_argument("--cases", type=int, default=20_000, help="least number of generated calls")
    options = parser.parse_args()
    with stage(HEADRACE_REQUEST_TIMEOUT_S="5") as made, server(made, ROOT) as (port, process):
        sys.exit(not is_sound(port, process, options.schemathesis, options.cases))


def is_sound(port: int, process: psutil.Process, program: Path, cases: int) -> bool:
    """Run the soaks and print what came of them."""
    paths = ("/v1/rank", "/v1/score")
    before = counts(port)
    schemathesis(port, program, "positive", cases // 8, *paths)
    valid = counts(port) - before
    reached = sum(count for (route, status), count in valid.items() if route in {"rank", "score"} and status == 200)
    asked = sum(count for (route, _), count in valid.items() if route in {"rank", "score"})
    share = reached / max(asked, 1)
    print(
        f"valid calls of rank and score: {asked}, of which {share:.0%} reach the model; by status {_by_status(valid)}"
    )

    half, resident_mb = counts(port), []
    while (counts(port) - half).total() < cases:
        schemathesis(port, program, "all", cases // 8)
        resident_mb.append(process.memory_info().rss / 1e6)
    random_bytes(port, cases // 2)
    resident_mb.append(process.memory_info().rss / 1e6)
    seen = counts(port)
    failed = {key: count for key, count in seen.items() if key[1] >= 500}
    print(f"all calls: {seen.total()}; by status {_by_status(seen)}; 5xx {failed or 'none'}")
    growth = resident_mb[-1] / resident_mb[0]
    print(f"resident MB after each soak: {', '.join(f'{mb:.0f}' for mb in resident_mb)}; last / first {growth:.3f}")
    is_alive = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    return is_alive and not failed and growth < GROWTH_MAX and share >= REACH_MIN


def _by_status(seen: Counter[tuple[str, int]]) -> dict[int, int]:
    by_status: Counter[int] = Counter()
    for (_, status), count in seen.items():
        by_status[status] += count
    return dict(sorted(by_status.items()))


if __name__ == "__main__":
    main()
