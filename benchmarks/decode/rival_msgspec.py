"""The rival for JSON with types: a loop over `msgspec.json.Decoder`, then one frame; and the loop alone.

The decoder checks types, the Literal and the bounds, and a bad payload costs itself alone. Install msgspec to compare;
Headrace does not need it.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
import polars as pl

from benchmarks.decode.declaration import Engagement
from headrace.schemas import spec_of


class Row(msgspec.Struct):
    """The fields of `Engagement`."""

    event_id: str
    event_time: datetime
    user_id: int
    item_id: int
    action: Literal["click", "like", "view"]
    dwell_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)]
    country: str | None


_DECODER = msgspec.json.Decoder(Row)


def loop(payloads: list[bytes]) -> list[Row]:
    """Structs, one a payload: less than we deliver."""
    decode = _DECODER.decode
    return [decode(payload) for payload in payloads]


def decode(payloads: list[bytes]) -> pl.DataFrame:
    """The same frame that ours gives."""
    rows = [msgspec.structs.astuple(row) for row in loop(payloads)]
    return pl.DataFrame(rows, schema=spec_of(Engagement).polars, orient="row")
