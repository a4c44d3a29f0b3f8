"""The rivals for JSON: a loop over a parser, then one frame; and the loop alone."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from benchmarks.decode.declaration import Engagement
from headrace.schemas import spec_of

PARSERS: dict[str, Callable[[bytes], Any]] = {"json.loads": json.loads, "orjson.loads": orjson.loads}


def loop(parse: Callable[[bytes], Any], payloads: list[bytes]) -> list[Any]:
    """Dicts, one a payload: less than we deliver, times are still text."""
    return [parse(payload) for payload in payloads]


def decode(parse: Callable[[bytes], Any], payloads: list[bytes]) -> pl.DataFrame:
    """The same frame that ours gives."""
    rows = [{**row, "event_time": datetime.fromisoformat(row["event_time"])} for row in loop(parse, payloads)]
    return pl.DataFrame(rows, schema=spec_of(Engagement).polars, orient="row")
