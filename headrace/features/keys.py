"""Entity keys: a 64-bit id for the engine's maps, a text for the store, and the shard that owns the key.

The id of a single integer column is its value, and its text the decimal digits. Any other key is a text: the value
itself, or for a composite entity the values joined by the unit separator 0x1f (a 0x1f or backslash inside a value is
escaped by a backslash). Its id is the XXH64 of the text. The probability that any two of 10 million keys share an id is
3 in a million.

A requested key is cast to the type that the events declare. A cast that would lose information is an error, so a
request never reads the record of another key.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from xxhash import xxh64_intdigest

from headrace.errors import SpineError
from headrace.kernels.hashing import shards_of
from headrace.kernels.spans import Spans
from headrace.kernels.texts import hash_text, text_buffers

SEPARATOR = "\x1f"
NULL_ID = -(2**63)
"""Id of a null key, which has no record. NumPy casts NaN and NaT to it; an integer key of this value counts as null."""
FEW = 64
"""Up to this many keys, a list of Python bytes is cheaper than a series."""
FEW_TEXTS = 256
"""Up to this many texts, hashing one by one is cheaper than hashing a series."""
_WORDS = {"int": "an int", "text": "a str", "any": "an int or a str"}
WHOLE_MAX = 2**53
"""From 2**53 on, a float may stand for several integers."""
_INEXACT = "read the column as integers; pandas makes floats of integers with nulls, unless their dtype is Int64"
_NO_TEXT = "leave it out"
_CASTS = {"int": "pl.Int64", "text": "pl.String", "any": "pl.String"}


class EntityKey(Protocol):
    """The key columns of a view. Every `ViewPlan` implements it."""

    @property
    def name(self) -> str:
        """The view's name, for error messages."""
        ...

    @property
    def entity(self) -> tuple[str, ...]:
        """The key columns."""
        ...

    @property
    def key_dtype(self) -> str:
        """Type of the key: "int" for a single integer column, else "str"."""
        ...

    @property
    def key_kinds(self) -> tuple[str, ...]:
        """For each key column "int" or "text", as the events declare it; "any" if they differ."""
        ...


def shard_of(ids: NDArray[np.int64], shards: int) -> NDArray[np.int64]:
    """Shard of each id, splitmix64(id) modulo `shards`: (n,) -> (n,). It must never change: stored keys depend on it.

    >>> shard_of(np.array([1, 2, 3]), 32)
    array([ 1, 14, 13])
    """
    out = np.empty(len(ids), np.int64)
    shards_of(np.require(ids, np.int64, ["C", "W"]), shards, out)
    return out


def entity_ids(plan: EntityKey, frame: pl.DataFrame) -> tuple[NDArray[np.int64], list[bytes]]:
    """Id (n,) and text of each row's entity. A null key gets `NULL_ID` and the empty text, and is never found.

    Raises:
        SpineError: a key column is missing or has another type; the message names view, column and columns given.
    """
    ids, keys = key_columns(plan, frame)
    return ids, texts_of(ids, keys)


def key_columns(plan: EntityKey, frame: pl.DataFrame) -> tuple[NDArray[np.int64], pl.Series | None]:
    """Id (n,) of each row's entity, and the texts as a series; None for integer keys, whose text follows from the id.

    Raises:
        SpineError: a key column is missing or has another type.
    """
    parts = fitted_keys(plan, frame)
    if len(parts) == 1:  # no select, which would start Polars' engine
        return ids_of_column(parts[0], plan.key_dtype)
    column = pl.DataFrame(parts).select(key_expr([pl.col(name) for name in plan.entity], plan.key_dtype)).to_series()
    return ids_of_column(column, plan.key_dtype)


def fitted_keys(plan: EntityKey, frame: pl.DataFrame) -> list[pl.Series]:
    """The key columns, cast to Int64 or String as the events declare them.

    Raises:
        SpineError: a key column is missing or has another type.
    """
    lacking = [name for name in plan.entity if name not in frame.columns]
    if lacking:
        raise SpineError(
            f"view {plan.name}: no column {lacking[0]!r} for the entity ({', '.join(plan.entity)}); "
            f"there are {', '.join(frame.columns) or 'none'}",
        )
    return [_fitted(plan, index, frame[name]) for index, name in enumerate(plan.entity)]


def key_series(plan: EntityKey, index: int, values: Sequence[Any]) -> pl.Series:
    """Convert Python values of key column `index` to a series of the declared type.

    Raises:
        SpineError: a value has another type; the message names view, column and value.
    """
    name, kind = plan.entity[index], plan.key_kinds[index]
    python_type = int if kind == "int" else str
    if not set(map(type, values)) <= {python_type, type(None)}:
        values = [_as_declared(plan, index, value) for value in values]
    try:
        return pl.Series(name, values, pl.Int64 if kind == "int" else pl.String)
    except UnicodeEncodeError as exc:
        raise _refused(plan, index, f"{exc.object!a} is no text of Unicode characters", _NO_TEXT) from exc
    except (TypeError, OverflowError) as exc:
        wrong = next(value for value in values if value is not None and not -(2**63) <= value < 2**63)
        raise _refused(plan, index, f"{wrong!r} is beyond 64 bits", "leave it out") from exc


def keys_of_texts(plan: EntityKey, rows: Sequence[Sequence[str]]) -> list[pl.Series]:
    """Parse keys written as texts, as in a command or a path, to key columns; each row has one text per key column.

    Integers have a single form: `+7` and `007` are rejected, so that a record has one name.

    Raises:
        SpineError: the text of an integer column is not a 64-bit integer, or is another form of one.
    """
    columns = []
    for index, (name, kind) in enumerate(zip(plan.entity, plan.key_kinds, strict=True)):
        try:
            texts = pl.Series(name, [row[index] for row in rows], dtype=pl.String)
        except UnicodeEncodeError as exc:
            raise _refused(plan, index, f"{exc.object!a} is no text of Unicode characters", _NO_TEXT) from exc
        column = texts.cast(pl.Int64, strict=False) if kind == "int" else texts
        is_wrong = column.is_null() | (column.cast(pl.String) != texts)
        if is_wrong.any():
            row = int(is_wrong.arg_max() or 0)
            fault = "is no Int64" if column[row] is None else f"is another form of {column[row]}: write that"
            raise SpineError(f"view {plan.name}: {name} {texts[row]!r} {fault}")
        columns.append(column)
    return columns


def text_columns(keys: Iterable[EntityKey]) -> dict[str, bool]:
    """Key column -> whether it is text; columns that may be either are left out."""
    kinds = {name: kind for key in keys for name, kind in zip(key.entity, key.key_kinds, strict=True)}
    return {name: kind == "text" for name, kind in kinds.items() if kind != "any"}


def _as_declared(plan: EntityKey, index: int, value: Any) -> Any:
    """Convert a value to an int or a str, whichever is declared."""
    kind = plan.key_kinds[index]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, str) and kind != "int"):
        return value
    if isinstance(value, float) and WHOLE_MAX <= abs(value) < float("inf") and kind != "text":
        raise _refused(plan, index, f"{value!r} is a float that stands for several whole numbers", _INEXACT)
    if kind != "text" and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value) if kind == "int" else str(int(value))
    raise _refused(plan, index, f"{value!r} is {type(value).__name__}")


def _fitted(plan: EntityKey, index: int, column: pl.Series) -> pl.Series:
    """Cast a key column to Int64 or String, whichever is declared."""
    kind, dtype = plan.key_kinds[index], column.dtype
    if dtype == (pl.Int64 if kind == "int" else pl.String):
        return column
    if dtype == pl.Null or (kind != "int" and dtype in (pl.Categorical, pl.Enum)):
        return column.cast(pl.Int64 if kind == "int" else pl.String)
    if kind == "text" or not (dtype.is_integer() or dtype.is_float()):
        examples = "".join(f", such as {value!r}" for value in column.drop_nulls().head(1))
        raise _refused(plan, index, f"the column is {dtype}{examples}")
    whole = column.cast(pl.Int64, strict=False)
    lost = whole.is_null() & column.is_not_null()
    if dtype.is_float():
        inexact = (column.is_finite() & (column.cast(pl.Float64).abs() >= WHOLE_MAX)).fill_null(value=False)
        if inexact.any():
            problem = f"{column.filter(inexact)[0]!r} is a float that stands for several whole numbers"
            raise _refused(plan, index, problem, _INEXACT)
        lost |= (whole.cast(pl.Float64) != column.cast(pl.Float64)).fill_null(value=False)
    if lost.any():
        raise _refused(plan, index, f"{column.filter(lost)[0]!r} is no whole number of 64 bits", "drop such rows")
    return whole if kind == "int" else whole.cast(pl.String)


def _refused(plan: EntityKey, index: int, problem: str, fix: str = "") -> SpineError:
    name, kind = plan.entity[index], plan.key_kinds[index]
    fix = fix or f"give {_WORDS[kind]}, for a frame pl.col({name!r}).cast({_CASTS[kind]})"
    return SpineError(f"view {plan.name}: entity column {name}: {problem}, and the events have {_WORDS[kind]}; {fix}")


def key_expr(parts: Sequence[pl.Expr], key_dtype: str) -> pl.Expr:
    """The key as one Int64 or String column; null where a part is null or the integer is `NULL_ID`."""
    if key_dtype == "int":
        key = parts[0].cast(pl.Int64)
        return pl.when(key != NULL_ID).then(key)
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
    """Ids (n,) of a key column, and its texts; None for integer keys."""
    if key_dtype == "int":
        column = column.fill_null(NULL_ID) if column.null_count() else column
        return column.to_numpy(writable=True), None
    ids = hash_text(column)
    if column.null_count():
        ids[column.is_null().to_numpy()] = NULL_ID
        column = column.fill_null("")
    return ids, column


class KeyTexts(Sequence[bytes]):
    """Texts of n keys. The list is built on first use, since a large read only needs the bytes (`spans`).

    `ids` (n,) and `keys` are those returned by `key_columns`.
    """

    def __init__(self, ids: NDArray[np.int64], keys: pl.Series | None) -> None:
        self._ids, self._keys = ids, keys

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return self._texts[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._texts)

    def spans(self) -> Spans:
        """The bytes of all texts."""
        if self._keys is not None:
            return Spans(*text_buffers(self._keys))
        texts = pl.Series(self._ids).cast(pl.String)
        nulls = self._ids == NULL_ID
        return Spans(*text_buffers(texts.set(pl.Series(nulls), None) if nulls.any() else texts))

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        return texts_of(self._ids, self._keys)


def hashed_keys(values: Sequence[Any], *, is_text: bool) -> tuple[NDArray[np.int64], Sequence[bytes]]:
    """Ids (n,) and texts of keys of a single column, all texts or all integers."""
    if is_text and len(values) > FEW_TEXTS:
        ids, keys = ids_of_column(pl.Series(values, dtype=pl.String), "str")
        return ids, KeyTexts(ids, keys)
    # No series and no kernel: this runs in every request, and either costs more than a few keys.
    if not is_text:
        ids = np.asarray(values, np.int64)
        return ids, KeyTexts(ids, None) if len(ids) > FEW else texts_of(ids, None)
    texts = [value.encode() for value in values]
    return np.array([xxh64_intdigest(text) for text in texts], np.uint64).view(np.int64), texts


def texts_of(ids: NDArray[np.int64], keys: pl.Series | None) -> list[bytes]:
    """UTF-8 text of each key."""
    if keys is None:
        return [b"%d" % key if key != NULL_ID else b"" for key in ids.tolist()]
    texts: list[bytes] = keys.cast(pl.Binary).to_list()
    return texts


def ids_of_texts(plan: EntityKey, texts: Sequence[bytes]) -> NDArray[np.int64]:
    """Id (n,) of each key text. Integer keys are parsed, others hashed."""
    if plan.key_dtype == "int":
        return np.array([int(text) if text else NULL_ID for text in texts], np.int64)
    return hash_text(pl.Series([text.decode() for text in texts], dtype=pl.String))
