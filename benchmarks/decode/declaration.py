"""What all sides decode: an event of seven fields, seeded rows of it, and their payloads as others would write them."""

import io
from datetime import UTC

import fastavro
import numpy as np
import orjson
import polars as pl

from benchmarks.materialize import declaration
from benchmarks.materialize.declaration import START_US
from headrace.schemas import spec_of


class Engagement(declaration.Engagement):
    """The event of benchmarks/materialize, and a column with nulls."""

    country: str | None


def rows(count: int, seed: int) -> pl.DataFrame:
    """Seeded rows, (count, 7)."""
    rng = np.random.default_rng(seed)
    countries = pl.Series(rng.choice(["US", "FR", "IN", ""], count))
    columns = {
        "event_id": [f"e{number:012d}" for number in range(count)],
        "event_time": pl.Series(START_US + np.arange(count) * 1_000).cast(pl.Datetime("us", "UTC")),
        "user_id": rng.integers(0, 1 << 40, count),
        "item_id": rng.integers(0, 1 << 30, count),
        "action": rng.choice(["click", "like", "view"], count),
        "dwell_s": rng.gamma(2, 5, count).round(3),
        "country": countries.replace({"": None}),
    }
    return pl.DataFrame(columns, schema=spec_of(Engagement).polars)


def avro_payloads(frame: pl.DataFrame) -> list[bytes]:
    """Plain datums, written by fastavro."""
    schema = fastavro.parse_schema(spec_of(Engagement).avro)
    payloads = []
    for row in frame.iter_rows(named=True):
        sink = io.BytesIO()
        fastavro.schemaless_writer(sink, schema, {**row, "event_time": row["event_time"].astimezone(UTC)})
        payloads.append(sink.getvalue())
    return payloads


def json_payloads(frame: pl.DataFrame) -> list[bytes]:
    """JSON objects, written by orjson."""
    return [orjson.dumps(row) for row in frame.iter_rows(named=True)]
