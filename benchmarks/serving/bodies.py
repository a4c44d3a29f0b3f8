"""A candidate list in and out as JSON, Arrow and MessagePack: CPU of the body alone.

    python -m benchmarks.serving.bodies

In: bytes to the list of keys that a request holds. Out: candidates and scores to bytes. MessagePack is that of the
`msgpack` package. Least of the rounds, so that another load of the machine does not count.
"""

import time
from collections.abc import Callable

import msgpack
import numpy as np
import orjson
import pyarrow as pa

from benchmarks.serving.stage import SEED, arguments
from headrace.serving.bodies.arrow import parse_arrow
from headrace.serving.messages import RankRequest
from headrace.serving.refusals import parse

SIZES = (10, 1_000, 5_000)


def least_us(work: Callable[[], object], rounds: int) -> float:
    """Least CPU time of `work`, in µs."""

    def once() -> float:
        began_s = time.thread_time()
        work()
        return (time.thread_time() - began_s) * 1e6

    return min(once() for _ in range(rounds))


def arrow_of(columns: dict[str, object], metadata: dict[str, object]) -> bytes:
    table = pa.table(columns).replace_schema_metadata({"request": orjson.dumps(metadata)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def measured(size: int, rounds: int, rng: np.random.Generator) -> None:
    """Print two lines: the request in, the answer out."""
    names = [f"item {i}" for i in rng.integers(0, 10**6, size)]
    scores = rng.random(size).astype(np.float32)
    rest = {"entity": {"customer_id": 7}}
    ask = {**rest, "candidates": names}
    given = orjson.dumps(ask), msgpack.packb(ask), arrow_of({"candidates": names}, rest)
    parsed = (
        lambda: parse(RankRequest, given[0]),
        lambda: RankRequest.model_validate(msgpack.unpackb(given[1])),
        lambda: parse_arrow(RankRequest, given[2]),
    )

    def answer() -> dict[str, object]:
        pairs = enumerate(zip(names, scores.tolist(), strict=True))
        return {"ranked": [{"candidate": name, "score": score, "position": i} for i, (name, score) in pairs]}

    made = (
        lambda: orjson.dumps(answer()),
        lambda: msgpack.packb(answer()),
        lambda: arrow_of({"candidate": names, "score": scores, "position": np.arange(size)}, rest),
    )
    for what, works, sizes in (("in", parsed, given), ("out", made, [work() for work in made])):
        cells = "".join(f"{least_us(work, rounds):12.0f}" for work in works)
        print(f"{size:6} {what:11}{cells}   {', '.join(str(len(body)) for body in sizes)}")


def main(rounds: int) -> None:
    rng = np.random.default_rng(SEED)
    print(f"{'':18}" + "".join(f"{name:>12}" for name in ("JSON", "msgpack", "Arrow")) + "   µs; bytes")
    for size in SIZES:
        measured(size, rounds, rng)


if __name__ == "__main__":
    main(arguments("bodies of requests and answers", 0.0, rounds=40).rounds)
