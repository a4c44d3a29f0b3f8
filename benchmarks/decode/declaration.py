"""What all sides decode: an event of seven fields, seeded rows of it, and their payloads as others would write them."""

import io
from datetime import UTC, datetime
from typing import Literal

import fastavro
import numpy as np
import orjson
import polars as pl

from headrace.schemas import Event, Field, spec_of

START_US = 1_700_000_000_000_000


class Engagement(Event, topic="engagements", key="user_id", time="event_time", id="event_id"):
    """Somebody did something with something."""

    event_id: str
    event_time: datetime
    user_id: int
    item_id: int
    action: Literal["click", "like", "view"]
    dwell_s: float = Field(ge=0, le=86_400)
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
