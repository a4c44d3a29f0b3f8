"""The rival for Avro: `fastavro.schemaless_reader` once a payload, then one frame; and the loop alone."""

import io
from typing import Any

import fastavro
import polars as pl

from benchmarks.decode.declaration import Engagement
from headrace.schemas import spec_of

_SCHEMA = fastavro.parse_schema(spec_of(Engagement).avro)


def loop(payloads: list[bytes]) -> list[Any]:
    """Dicts, one a payload: less than we deliver."""
    return [fastavro.schemaless_reader(io.BytesIO(payload), _SCHEMA) for payload in payloads]


def decode(payloads: list[bytes]) -> pl.DataFrame:
    """The same frame that ours gives."""
    return pl.DataFrame(loop(payloads), schema=spec_of(Engagement).polars, orient="row")
