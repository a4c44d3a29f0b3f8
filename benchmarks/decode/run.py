"""How many payloads a second become rows, ours against other parsers; answers are compared.

The rivals are loops over fastavro, json, orjson and (where it is installed) msgspec, and the column readers of pyarrow
and Polars.

python -m benchmarks.decode.run [--rows 100000] [--repeats 7] [--seed 7]

A repeat times ours and the rival one after the other, and the ratio is the median of the repeats' ratios.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from benchmarks.conditions import describe
from benchmarks.decode import ours, rival_columns, rival_fastavro, rival_json
from benchmarks.decode.declaration import avro_payloads, json_payloads, rows

HAS_MSGSPEC = importlib.util.find_spec("msgspec") is not None
PACKAGES = ("polars", "numpy", "numba", "pyarrow", "fastavro", "orjson", "msgspec")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    describe("benchmarks.decode.run", PACKAGES, given)

    frame = rows(given.rows, given.seed)
    avro, json = avro_payloads(frame), json_payloads(frame)
    print(f"{given.rows:,} rows of 7 fields, Avro {sum(map(len, avro)) / given.rows:.0f} bytes a payload, ", end="")
    print(f"JSON {sum(map(len, json)) / given.rows:.0f}; medians of {given.repeats} pairs")
    loops = {"fastavro loop, to dicts": rival_fastavro.loop, "fastavro loop, to a frame": rival_fastavro.decode}
    compare("avro", avro, frame, loops, given.repeats)
    for name, parse in rival_json.PARSERS.items():
        rival, loop = partial(rival_json.decode, parse), partial(rival_json.loop, parse)
        compare("json", json, frame, {f"{name} loop, to dicts": loop, f"{name} loop, to a frame": rival}, given.repeats)
    if HAS_MSGSPEC:
        from benchmarks.decode import rival_msgspec as typed

        loops = {"msgspec loop, to structs": typed.loop, "msgspec loop, to a frame": typed.decode}
        compare("json", json, frame, loops, given.repeats)
    compare("json", json, frame, rival_columns.READERS, given.repeats)


def compare(
    codec: str,
    payloads: list[bytes],
    wanted: pl.DataFrame,
    rivals: Mapping[str, Callable[[list[bytes]], Any]],
    repeats: int,
) -> None:
    decode = ours.decoder(codec)
    assert decode(payloads).equals(wanted)  # also compiles the kernels
    for label, rival in rivals.items():
        answer = rival(payloads)
        assert not isinstance(answer, pl.DataFrame) or answer.equals(wanted), label
        pairs = [(seconds(decode, payloads), seconds(rival, payloads)) for _ in range(repeats)]
        ours_s, rival_s = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(theirs / mine for mine, theirs in pairs)
        rates = f"{len(payloads) / ours_s:>12,.0f} rows/s  {label:<28} {len(payloads) / rival_s:>10,.0f} rows/s"
        print(f"{codec:<5} Headrace {rates}  x {ratio:.1f}")


def seconds(run: Callable[[list[bytes]], Any], payloads: list[bytes]) -> float:
    start = time.perf_counter()
    run(payloads)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
