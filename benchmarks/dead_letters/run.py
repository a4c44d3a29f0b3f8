"""How many rows a second pass the intake when a share of them is bad: decoded, checked, and every bad one written.

python -m benchmarks.dead_letters.run [--rows 200000] [--repeats 3] [--seed 7] [--codecs avro json]

A bad payload cannot be decoded; a bad row breaks a rule. Batches are as large as a poll of a broker. Letters go to
files in a temporary folder, and are counted there. Beside the rate is the processor time of a row, all threads
together: on a machine that is shared it changes less.

Before letters were columns (one object, one select and one JSON text for each bad row), on the same two shared cores:

    codec   bad rows  1%      10%     50%     bad payloads  1%      10%      50%
    avro         124,015   19,467   4,472          954,240  348,610   43,575 rows/s
    json         218,229   41,092   6,569          824,314  307,858   70,088 rows/s
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import structlog

from benchmarks.conditions import describe
from benchmarks.decode.declaration import Engagement, rows
from benchmarks.materialize.declaration import START_US
from headrace.clock import FixedClock
from headrace.schemas import FileDeadLetters, codec_for, spec_of
from headrace.streams.intake import Intake
from headrace.streams.source import Batch

PACKAGES = ("polars", "numpy", "numba", "pyarrow", "orjson")
BATCH_ROWS = 16_384
SHARES = (0.0, 0.01, 0.1, 0.5)
TOPIC = spec_of(Engagement).topic


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--codecs", nargs="+", default=["avro", "json"])
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    describe("benchmarks.dead_letters.run", PACKAGES, given)
    frame = rows(given.rows, given.seed)
    for codec in given.codecs:
        for kind in ("payloads", "rows"):
            for share in SHARES:
                payloads, bad_count = storm(frame, codec, kind, share, given.seed)
                runs = [run_of(payloads, codec, bad_count) for _ in range(given.repeats)]
                rate, cpu_us = (statistics.median(side) for side in zip(*runs, strict=True))
                print(f"{codec:<14} {share:>5.0%} bad {kind:<9} {rate:>12,.0f} rows/s {cpu_us:>8.2f} us of CPU a row")


def storm(frame: pl.DataFrame, codec: str, kind: str, share: float, seed: int) -> tuple[list[bytes], int]:
    """Payloads of the rows of which a share is bad, and how many that is."""
    is_bad = np.random.default_rng(seed).random(frame.height) < share
    if kind == "rows":
        dwell = pl.when(pl.Series(is_bad)).then(-pl.col("dwell_s") - 1).otherwise("dwell_s")
        return codec_for(Engagement, codec).encode(frame.with_columns(dwell_s=dwell)), int(is_bad.sum())
    payloads = codec_for(Engagement, codec).encode(frame)
    cut = [payload[:-1] if bad else payload for payload, bad in zip(payloads, is_bad.tolist(), strict=True)]
    return cut, int(is_bad.sum())


def run_of(payloads: list[bytes], codec: str, bad_count: int) -> tuple[float, float]:
    """(Rows a second, microseconds of processor time a row), good and bad together."""
    batches = [
        Batch(TOPIC, f"{TOPIC}/0", np.arange(start, start + len(part)), start + len(part), part, None, None, 0, codec)
        for start in range(0, len(payloads), BATCH_ROWS)
        for part in [payloads[start : start + BATCH_ROWS]]
    ]
    with tempfile.TemporaryDirectory() as folder:
        letters = FileDeadLetters(folder)
        intake = Intake([Engagement], dead_letters=letters, clock=FixedClock(START_US + 10**12))
        intake.decode(batches[0])  # compiles the kernels
        first = sum(1 for _ in written(folder))
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        good_count = sum(intake.decode(batch).frame.height for batch in batches)
        letters.close()
        took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        assert sum(1 for _ in written(folder)) - first == bad_count == len(payloads) - good_count
    return len(payloads) / took_s, cpu_s / len(payloads) * 1e6


def written(folder: str):
    """Lines of all letter files."""
    for file in Path(folder).iterdir():
        with file.open("rb") as lines:
            yield from lines


if __name__ == "__main__":
    main()
