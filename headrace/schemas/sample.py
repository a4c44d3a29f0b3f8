"""A plausible row of an event, for running code once before the first real batch: compiled code is then loaded."""

from datetime import UTC, datetime
from typing import Any

import polars as pl

from headrace.schemas.event import EventSpec


def sample_frame(spec: EventSpec) -> pl.DataFrame:
    """One row of `spec`'s columns, each with some value of its type; constraints are not looked at."""
    return pl.DataFrame({name: pl.Series([_value(dtype)], dtype=dtype) for name, dtype in spec.polars.items()})


def _value(dtype: pl.DataType) -> Any:
    if isinstance(dtype, pl.List):
        return [_value(dtype.inner)]  # type: ignore[arg-type]  # an instance, as our schemas hold them
    if isinstance(dtype, pl.Struct):
        return {field.name: _value(field.dtype) for field in dtype.fields}  # type: ignore[arg-type]
    if isinstance(dtype, pl.Datetime):
        return datetime(2000, 1, 1, tzinfo=UTC)
    if isinstance(dtype, pl.Binary):
        return b"x"
    if isinstance(dtype, pl.Boolean):
        return True
    return "x" if isinstance(dtype, pl.String) else 1
