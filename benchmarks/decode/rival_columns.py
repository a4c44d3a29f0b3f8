"""The rivals for JSON that read many objects into columns: pyarrow's reader and Polars' NDJSON reader.

Both read more and tell less than a decoder of a stream must, so they are a mark for speed, not a replacement:

- a field that is absent and one that is null are alike, so defaults cannot be told from nulls;
- one bad object fails the whole batch, and halving a batch of which half is bad costs a call for each bad payload;
- pyarrow takes a payload with two objects for two rows, and one object in two payloads for one;
- Polars takes the last of two equal names, and a number for a text.
"""

import io
from collections.abc import Callable

import polars as pl
import pyarrow as pa
import pyarrow.json as pa_json

from benchmarks.decode.declaration import Engagement
from headrace.schemas import arrow_schema, spec_of

_SPEC = spec_of(Engagement)
_TEXT_TIMES = pa.schema(
    [field.with_type(pa.large_string()) if field.name == _SPEC.time else field for field in arrow_schema(_SPEC)]
)


def by_pyarrow(payloads: list[bytes]) -> pl.DataFrame:
    """All payloads by `pyarrow.json.read_json` with a schema, on one thread."""
    source = io.BytesIO(b"\n".join(payloads))
    options = pa_json.ParseOptions(explicit_schema=_TEXT_TIMES, unexpected_field_behavior="ignore")
    table = pa_json.read_json(source, pa_json.ReadOptions(use_threads=False, block_size=1 << 24), options)
    return _with_times(pl.DataFrame(table))


def by_polars(payloads: list[bytes]) -> pl.DataFrame:
    """All payloads by `polars.read_ndjson` with a schema, on all cores."""
    schema = {name: pl.String() if name == _SPEC.time else dtype for name, dtype in _SPEC.polars.items()}
    return _with_times(pl.read_ndjson(io.BytesIO(b"\n".join(payloads)), schema=schema))


def _with_times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(_SPEC.time).str.to_datetime("%+", time_unit="us", time_zone="UTC"))


READERS: dict[str, Callable[[list[bytes]], pl.DataFrame]] = {"pyarrow.json": by_pyarrow, "polars ndjson": by_polars}
