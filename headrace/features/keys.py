"""Entity keys: a 64-bit id for the engine's maps, a text for the store, and the shard that owns it.

A single integer column is its own id, and its decimal digits are its text. Anything else is a text: the value itself,
or for a composite entity the values joined by the unit separator 0x1f (a 0x1f or backslash inside a value gets a
backslash before it); its id is the XXH64 of the text. That any two of 10 million keys share an id has a
probability of 3 in a million.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SpineError
from headrace.features.kernels.hashing import splitmix64
from headrace.features.kernels.text_pool import hash_text

if TYPE_CHECKING:
    from headrace.features.view import ViewPlan

SEPARATOR = "\x1f"
NULL_ID = -(2**63)
"""Id of a null key in a read: no event has it, so it is never found."""


def shard_of(ids: NDArray[np.int64], shards: int) -> NDArray[np.int64]:
    """Shard of each id, splitmix64(id) modulo `shards`: (n,) -> (n,). Fixed for good: stored keys depend on it.

    >>> shard_of(np.array([1, 2, 3]), 32)
    array([ 1, 14, 13])
    """
    return (splitmix64(ids) % np.uint64(shards)).astype(np.int64)


def entity_ids(plan: "ViewPlan", frame: pl.DataFrame) -> tuple[NDArray[np.int64], list[bytes]]:
    """Id (n,) and text of each row's entity; a null key gets `NULL_ID` and the empty text, and is never found.

    Raises:
        SpineError: a key column is missing or of another type; names view, column and the columns found.
    """
    ids, keys = key_columns(plan, frame)
    return ids, texts_of(ids, keys)


def key_columns(plan: "ViewPlan", frame: pl.DataFrame) -> tuple[NDArray[np.int64], pl.Series | None]:
    """Id (n,) of each row's entity, and its text as a series; None for integer keys, whose text follows from the id.

    Raises:
        SpineError: as `entity_ids`.
    """
    lacking = [name for name in plan.entity if name not in frame.columns]
    if lacking:
        raise SpineError(
            f"view {plan.name}: no column {lacking[0]!r} for the entity ({', '.join(plan.entity)}); "
            f"there are {', '.join(frame.columns) or 'none'}",
        )
    try:
        if len(plan.entity) == 1:  # a cast of a series does not start Polars' engine, a select does
            column = frame[plan.entity[0]].cast(pl.Int64 if plan.key_dtype == "int" else pl.String)
        else:
            column = frame.select(key_expr([pl.col(name) for name in plan.entity], plan.key_dtype)).to_series()
    except pl.exceptions.PolarsError as exc:
        raise SpineError(f"view {plan.name}: entity {', '.join(plan.entity)} is no {plan.key_dtype}: {exc}") from exc
    return ids_of_column(column, plan.key_dtype)


def key_expr(parts: Sequence[pl.Expr], key_dtype: str) -> pl.Expr:
    """The key as one column: Int64, or String; null where any part is."""
    if key_dtype == "int":
        return parts[0].cast(pl.Int64)
    if len(parts) == 1:
        return parts[0].cast(pl.String)
    escaped = [
        part.cast(pl.String)
        .str.replace_all("\\", "\\\\", literal=True)
        .str.replace_all(SEPARATOR, f"\\{SEPARATOR}", literal=True)
        for part in parts
    ]
    return pl.concat_str(escaped, separator=SEPARATOR)


def ids_of_column(column: pl.Series, key_dtype: str) -> tuple[NDArray[np.int64], pl.Series | None]:
    """Ids (n,) of a key column and its texts, None for integer keys."""
    if key_dtype == "int":
        column = column.fill_null(NULL_ID) if column.null_count() else column
        return column.to_numpy(writable=True), None
    ids = hash_text(column)
    if column.null_count():
        ids[column.is_null().to_numpy()] = NULL_ID
        column = column.fill_null("")
    return ids, column


def texts_of(ids: NDArray[np.int64], keys: pl.Series | None) -> list[bytes]:
    """Text of each key, UTF-8."""
    if keys is None:
        return [b"%d" % key if key != NULL_ID else b"" for key in ids.tolist()]
    found: list[bytes] = keys.cast(pl.Binary).to_list()
    return found


def ids_of_texts(plan: "ViewPlan", texts: Sequence[bytes]) -> NDArray[np.int64]:
    """Id of each key text, the reverse of `texts_of` where that is possible: (n,)."""
    if plan.key_dtype == "int":
        return np.array([int(text) if text else NULL_ID for text in texts], np.int64)
    return hash_text(pl.Series([text.decode() for text in texts], dtype=pl.String))
