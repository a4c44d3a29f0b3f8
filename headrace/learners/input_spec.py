"""InputSpec: the declaration of a model's inputs, and how they are assembled from view features and request columns.

    inputs = InputSpec(
        Categorical("thing", table="thing"),
        Bag("recent", "reader_activity.recent", table="thing", length=20),
        Dense("reads", "reader_activity.reads_1h", transform="log1p"),
        Match("seen_before", candidate="thing", column="reader_activity.recent", kind="recency"),
    )

A column name with a dot is a view's feature, `<view>.<feature>`. A name without a dot is a request column, such as the
candidates' ids or a position. A null id becomes PAD, which reads as zeros; a NaN, infinite or PAD number becomes NaN.
Training and serving assemble with the same spec, and the inputs carry its fingerprint.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError
from headrace.features import Lists
from headrace.features.argument_types import check_arguments, declared
from headrace.learners.ids import as_ids
from headrace.learners.inputs import PAD, Inputs
from headrace.learners.tables import kernels

Transform = Literal["identity", "log1p", "signed_log1p", "sqrt"]
MatchKind = Literal["any", "count", "recency"]
_KINDS: dict[str, int] = {"any": 0, "count": 1, "recency": 2}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


Column = NDArray[Any] | Lists
"""Values (n,), or lists, newest first: row i is `values[i, : lengths[i]]`. A column of one row applies to all rows."""
Columns = Mapping[str, Column]


def _log1p(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log1p(np.maximum(x, 0.0))


def _signed_log1p(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(x) * np.log1p(np.abs(x))


def _sqrt(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(x, 0.0))


_TRANSFORMS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "identity": lambda x: x,
    "log1p": _log1p,
    "signed_log1p": _signed_log1p,
    "sqrt": _sqrt,
}


@declared
@dataclass(frozen=True, slots=True)
class Categorical:
    """One id per row: integers keep their value, text becomes its xxh64. `column` and `table` default to `name`."""

    name: str
    column: str = ""
    table: str = ""


@declared
@dataclass(frozen=True, slots=True)
class Bag:
    """The `length` newest ids of a list feature.

    `candidate` names the `Categorical` that attention compares the elements with; it must use the same table.
    """

    name: str
    column: str = ""
    table: str = ""
    length: int = 20
    candidate: str = ""


@declared
@dataclass(frozen=True, slots=True)
class Dense:
    """One number per row: `transform(scale * x)`; log1p and sqrt treat negative numbers as 0."""

    name: str
    column: str = ""
    transform: Transform = "identity"
    scale: float = 1.0


@declared
@dataclass(frozen=True, slots=True)
class Match:
    """Occurrences of the candidate in a list: any (0 or 1), count, or recency, 1 / (1 + rank of the newest)."""

    name: str
    candidate: str
    column: str
    kind: MatchKind = "any"


@declared
@dataclass(frozen=True, slots=True)
class Derived:
    """One number per row, computed by `function` from a mapping of `columns`; it returns (B,) or (1,) numbers.

    The function must be pure. The fingerprint covers its qualified name, not its code: raise `version` when the code
    changes.
    """

    name: str
    function: Callable[[Columns], NDArray[Any]]
    columns: tuple[str, ...]
    version: int = 1


Field = Categorical | Bag | Dense | Match | Derived


class InputSpec:
    """The fields of a model's inputs, in declared order.

    Attributes:
        categoricals, bags, numbers: the fields by kind; `numbers` are Dense, Match and Derived, the columns of
            `Inputs.dense`.
        id_names, bag_names, dense_names: their names, in the order of the arrays' columns.
        columns: every source column that `assemble` reads.
        tables: names of the embedding tables, in order of first use.
        fingerprint: 16 hex characters; equal for equal declarations.

    Raises:
        DeclarationError: there is no field, two fields share a name, a length, transform or kind is not allowed, or
            `candidate` names no field with the same table.
    """

    def __init__(self, *fields: Field) -> None:
        for field in fields:
            if not isinstance(field, Field):
                given = f"the class {field.__name__}; call it" if isinstance(field, type) else repr(field)
                raise DeclarationError(f'inputs: {given}; write fields, such as Categorical("item") or Dense("reads")')
        self.fields = tuple(_named(field) for field in fields)
        self.categoricals = tuple(field for field in self.fields if isinstance(field, Categorical))
        self.bags = tuple(field for field in self.fields if isinstance(field, Bag))
        self.numbers = tuple(field for field in self.fields if isinstance(field, Dense | Match | Derived))
        self.id_names = tuple(field.name for field in self.categoricals)
        self.bag_names = tuple(field.name for field in self.bags)
        self.dense_names = tuple(field.name for field in self.numbers)
        self.columns = tuple(dict.fromkeys(column for field in self.fields for column in _sources(field)))
        tables = [*(field.table for field in self.categoricals), *(field.table for field in self.bags)]
        self.tables = tuple(dict.fromkeys(tables))
        self._check()
        self._transforms = _transforms_of(self.numbers)
        self.fingerprint = f"{xxhash.xxh64_intdigest(repr([_text(field) for field in self.fields]).encode()):016x}"

    def __repr__(self) -> str:
        return f"InputSpec({', '.join(map(repr, self.fields))})"

    def _check(self) -> None:
        for field in self.fields:
            check_arguments(f"inputs · {type(field).__name__} {field.name!r}", field)
        names = [field.name for field in self.fields]
        if not names or len(set(names)) != len(names):
            raise DeclarationError(f"inputs {names}: give each field its own name, and at least one field")
        for field in self.fields:
            if isinstance(field, Bag) and not 1 <= field.length <= 10_000:
                raise DeclarationError(f"inputs · bag {field.name}: length {field.length}; 1 to 10000 is allowed")
            if isinstance(field, Bag) and field.candidate:
                partner = {each.name: each for each in self.categoricals}.get(field.candidate)
                if partner is None or partner.table != field.table:
                    raise DeclarationError(
                        f"inputs · bag {field.name}: candidate {field.candidate!r}: no id of table {field.table!r}"
                    )
            if isinstance(field, Dense) and field.transform not in _TRANSFORMS:
                raise DeclarationError(
                    f"inputs · dense {field.name}: transform {field.transform!r}; use {', '.join(_TRANSFORMS)}"
                )
            if isinstance(field, Dense) and not np.isfinite(field.scale):
                raise DeclarationError(f"inputs · dense {field.name}: scale {field.scale}; write a finite number")
            if isinstance(field, Match) and field.kind not in _KINDS:
                raise DeclarationError(f"inputs · match {field.name}: kind {field.kind!r}; use {', '.join(_KINDS)}")

    def assemble(self, columns: Columns, rows: int) -> Inputs:
        """Assemble the inputs of `rows` examples.

        Args:
            columns: source column -> (rows,) values or a list column of `rows` rows; length 1 applies to all rows.
            rows: B, the number of examples.

        Raises:
            SchemaError: a column is missing, has neither 1 nor `rows` rows, or holds values of the wrong kind.
        """
        ids = np.empty((rows, len(self.categoricals)), dtype=np.int64)
        for index, categorical in enumerate(self.categoricals):
            ids[:, index] = _ids(_scalar(columns, categorical.column, rows), categorical.column)
        bags = tuple(_bag(_list(columns, bag.column, rows), bag, rows) for bag in self.bags)
        numbers = np.empty((len(self.numbers), rows))
        for index, number in enumerate(self.numbers):
            numbers[index] = _number(number, columns, rows)
        for transform, indexes, scales in self._transforms:
            numbers[indexes] = _TRANSFORMS[transform](numbers[indexes] * scales)
        dense = np.empty((rows, len(self.numbers)), dtype=np.float32)
        # A number beyond the range of float32 is clipped to it: it is large, not missing.
        dense[:] = np.where(np.isfinite(numbers), numbers.clip(-_FLOAT32_MAX, _FLOAT32_MAX), np.nan).T
        return Inputs(ids, bags, dense, self.fingerprint)


def _transforms_of(numbers: tuple[Dense | Match | Derived, ...]) -> list[tuple[str, NDArray[np.int64], NDArray[Any]]]:
    """(transform, its rows of `numbers` (n,), their scales (n, 1)) of each transform: one call for all its rows."""
    dense = [(i, number) for i, number in enumerate(numbers) if isinstance(number, Dense)]
    by_name = {name: [(i, number.scale) for i, number in dense if number.transform == name] for name in _TRANSFORMS}
    return [
        (name, np.array([i for i, _ in pairs]), np.array([[scale] for _, scale in pairs]))
        for name, pairs in by_name.items()
        if pairs
    ]


def _named(field: Field) -> Field:
    match field:
        case Categorical(name, column, table):
            return Categorical(name, column or name, table or name)
        case Bag(name, column, table, length, candidate):
            return Bag(name, column or name, table or name, length, candidate)
        case Dense(name, column, transform, scale):
            return Dense(name, column or name, transform, scale)
        case _:
            return field


def _sources(field: Field) -> tuple[str, ...]:
    match field:
        case Match(_, candidate, column):
            return candidate, column
        case Derived(_, _, columns):
            return tuple(columns)
        case _:
            return (field.column,)


def _text(field: Field) -> str:
    if isinstance(field, Derived):
        called = getattr(field.function, "__qualname__", type(field.function).__qualname__)
        return f"Derived({field.name!r}, {called}, {field.columns!r}, {field.version})"
    return repr(field)


def _find(columns: Columns, name: str) -> Column:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, 1)
        hint = f"nearest is {near[0]!r}" if near else f"there are {', '.join(sorted(columns))}"
        raise SchemaError(f"inputs · column {name!r} is missing; {hint}")
    return columns[name]


def _scalar(columns: Columns, name: str, rows: int) -> NDArray[Any]:
    column = np.asarray(_find(columns, name))
    if column.ndim != 1 or len(column) not in (1, rows):
        raise SchemaError(f"inputs · column {name!r} has shape {column.shape}, wanted ({rows},) or (1,)")
    return column


def _list(columns: Columns, name: str, rows: int) -> Lists:
    column = _find(columns, name)
    if isinstance(column, np.ndarray) or not hasattr(column, "lengths") or len(column.lengths) not in (1, rows):
        raise SchemaError(f"inputs · column {name!r} must hold lists, {rows} or 1")
    values, longest = column.values, int(column.lengths.max(initial=0))
    if values.ndim != 2 or len(values) != len(column.lengths) or longest > values.shape[1]:
        given = f"values {values.shape} and {len(column.lengths)} lengths up to {longest}"
        raise SchemaError(f"inputs · column {name!r}: lists of {given}; wanted (n, L) and n of at most L")
    return column


def _ids(values: NDArray[Any], column: str) -> NDArray[np.int64]:
    """`as_ids` of a column, with the column's name in errors."""
    try:
        return as_ids(values)
    except SchemaError as exc:
        raise SchemaError(f"inputs · column {column!r}: {exc}") from exc


def _bag(column: Lists, field: Bag, rows: int) -> NDArray[np.int64]:
    length = field.length
    values = _ids(column.values[:, :length], field.column)
    bag = np.full((len(values), length), PAD, dtype=np.int64)
    present = np.arange(values.shape[1]) < column.lengths[:, None]
    bag[:, : values.shape[1]][present] = values[present]
    return np.broadcast_to(bag, (rows, length)) if len(bag) != rows else bag


def _number(field: Dense | Match | Derived, columns: Columns, rows: int) -> NDArray[Any]:
    match field:
        case Dense():
            raw = _scalar(columns, field.column, rows)
            return np.where(raw == PAD, np.nan, raw) if raw.dtype.kind == "i" else _floats(raw, field)
        case Match():
            out = np.empty(rows, dtype=np.float32)
            lists = _list(columns, field.column, rows)
            candidates = np.ascontiguousarray(_ids(_scalar(columns, field.candidate, rows), field.candidate))
            elements = np.ascontiguousarray(_ids(lists.values, field.column))
            lengths = np.ascontiguousarray(lists.lengths, dtype=np.int64)
            kernels.match(candidates, elements, lengths, _KINDS[field.kind], out)
            return out
        case Derived():
            declared = {name: _find(columns, name) for name in field.columns}  # serving reads only these
            try:
                given = np.asarray(field.function(declared))
            except KeyError as exc:
                names = ", ".join(field.columns)
                detail = f"no column {exc}: its function gets {names}; name in `columns` all that it reads"
                raise SchemaError(f"inputs · derived {field.name!r}: {detail}") from exc
            if given.shape not in ((rows,), (1,)):
                raise SchemaError(f"inputs · derived {field.name!r} gave shape {given.shape}, wanted ({rows},) or (1,)")
            return _floats(given, field)


def _floats(values: NDArray[Any], field: Dense | Derived) -> NDArray[Any]:
    """Convert a field's values to numbers; objects and texts become floats, times become microseconds.

    Raises:
        SchemaError: a value is not a number.
    """
    if values.dtype.kind in "fiub":
        return values
    try:
        if values.dtype.kind in "OU":
            return values.astype(np.float64)
        if values.dtype.kind in "mM":
            micros = values.astype(f"{values.dtype.kind}8[us]")
            return np.where(np.isnat(micros), np.nan, micros.astype(np.int64))
    except (TypeError, ValueError, OverflowError) as exc:
        what = f"inputs · {type(field).__name__} {field.name!r}"
        raise SchemaError(f"{what}: {exc}; give numbers, or read ids with Categorical") from exc
    raise SchemaError(f"inputs · {type(field).__name__} {field.name!r}: {values.dtype} is no number")
