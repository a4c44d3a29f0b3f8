"""Types of declared fields, as trees from which Avro, Arrow and Polars types and quality rules are derived.

A `FieldType` is a leaf (int, float, bool, text, bytes, time), a list of one item type, or a struct of named fields.
A type without an exact columnar equivalent is rejected here; the error names class, field and what to write instead.
"""

import enum
import itertools
import re
import types
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import polars as pl
import pyarrow as pa
import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from headrace.errors import DeclarationError
from headrace.schemas.rules import Rule, refuse_unfit, rules_in

Kind = Literal["int", "float", "bool", "text", "bytes", "time", "list", "struct"]

_LEAVES: dict[object, Kind] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "text",
    bytes: "bytes",
    datetime: "time",
    pydantic.AwareDatetime: "time",
}
_POLARS: dict[Kind, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "text": pl.String(),
    "bytes": pl.Binary(),
    "time": pl.Datetime("us", "UTC"),
}
_ARROW: dict[Kind, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.large_string(),
    "bytes": pa.large_binary(),
    "time": pa.timestamp("us", tz="UTC"),
}
_AVRO: dict[Kind, Any] = {
    "int": "long",
    "float": "double",
    "bool": "boolean",
    "text": "string",
    "bytes": "bytes",
    "time": {"type": "long", "logicalType": "timestamp-micros"},
}
DECIMAL_DIGITS = 38
"""Digits of an Arrow decimal of 16 bytes, the widest that Polars has."""

_SUPPORTED = "int, float, bool, str, bytes, datetime, Literal, Enum, X | None, list[X] or a pydantic model"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """Encoding of a value in another writer's Avro schema, if it differs from the encoding in our own schemas.

    `kind` is float32, long (read as a float), enum, fixed, scaled (a time in another unit), decimal, null, skip (a
    field that the event does not have) or union. `argument` is the size of a fixed, the number of an enum's symbols,
    the microseconds per unit of a scaled time (negative: units per microsecond), or the node of a skip or null. A union
    has a branch for each of its types: the type as which it is read, "null", or "refused" if the event cannot hold it.
    """

    kind: Literal["float32", "long", "enum", "fixed", "scaled", "decimal", "null", "skip", "union"]
    argument: int = 0
    symbols: tuple[str, ...] = ()
    scale: int | None = None
    branches: tuple["FieldType | Literal['null', 'refused']", ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FieldType:
    """A node of a field's type tree.

    `allowed` is the closed set of a Literal or Enum, `fields` the fields of a struct, in order, `item` the item type of
    a list. A field that is not `nullable` and has no `default` (PydanticUndefined) must be present in every event.
    `null_branch` is the index of null in the Avro union, 0 in our own schemas; `aliases` are the field's names in older
    events. `wire` is set only in the types of another writer's schema.
    """

    kind: Kind
    nullable: bool = False
    rules: tuple[Rule, ...] = ()
    allowed: tuple[Any, ...] | None = None
    item: "FieldType | None" = None
    fields: tuple[tuple[str, "FieldType"], ...] = ()
    record: str = ""
    default: Any = PydanticUndefined
    null_branch: int = 0
    aliases: tuple[str, ...] = ()
    wire: Wire | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether the field is on the wire but not a column."""
        return self.wire is not None and self.wire.kind == "skip"

    @property
    def required(self) -> bool:
        """Whether every event must carry a value."""
        return not self.nullable and self.default is PydanticUndefined

    def name_in(self, columns: Collection[str], name: str) -> str | None:
        """The name of the field in `columns`: its current `name`, else an alias; None if it is missing."""
        return next((each for each in (name, *self.aliases) if each in columns), None)

    def polars(self) -> pl.DataType:
        """The column type in frames."""
        if self.kind == "list":
            assert self.item is not None
            return pl.List(self.item.polars())
        if self.kind == "struct":
            return pl.Struct({name: field.polars() for name, field in self.fields})
        return _POLARS[self.kind]

    def arrow(self) -> pa.DataType:
        """The Arrow type, with 64-bit offsets; children of lists and structs are nullable, as Polars writes them."""
        if self.kind == "list":
            assert self.item is not None
            return pa.large_list(self.item.arrow())
        if self.kind == "struct":
            return pa.struct([pa.field(name, field.arrow()) for name, field in self.fields if not field.is_skipped])
        if self.wire is not None and self.wire.scale is not None:
            return pa.decimal128(DECIMAL_DIGITS, self.wire.scale)
        if self.wire is not None and self.wire.kind == "null":
            return pa.null()
        return _ARROW[self.kind]

    def avro(self) -> Any:
        """The Avro type."""
        return ["null", self._avro_bare()] if self.nullable else self._avro_bare()

    def _avro_bare(self) -> Any:
        if self.kind == "list":
            assert self.item is not None
            return {"type": "array", "items": self.item.avro()}
        if self.kind == "struct":
            return {"type": "record", "name": self.record, "fields": avro_fields(self.fields)}
        bare = _AVRO[self.kind]
        # Avro ignores unknown attributes, so the closed set is added for the lock file.
        return {"type": bare, "allowed": list(self.allowed)} if self.allowed is not None else bare


def avro_fields(fields: Iterable[tuple[str, FieldType]]) -> list[dict[str, Any]]:
    """The `fields` of an Avro record."""
    written = []
    for name, field in fields:
        entry: dict[str, Any] = {"name": name, "type": field.avro()}
        if field.nullable and field.default in (None, PydanticUndefined):
            entry["default"] = None
        elif not field.nullable and field.default is not PydanticUndefined:
            entry["default"] = plain(field.default)
        if field.aliases:
            entry["aliases"] = list(field.aliases)
        written.append(entry)
    return written


def plain(value: Any, *, is_json: bool = True) -> Any:
    """Convert a default for JSON, or for a column: enums to their values, times to microseconds.

    In JSON, bytes are latin-1 text, as the Avro specification says.
    """
    match value:
        case enum.Enum():
            return value.value
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (aware - _EPOCH) // (datetime.resolution)
        case bytes() if is_json:
            return value.decode("latin-1")
        case list():
            return [plain(item, is_json=is_json) for item in value]
        case pydantic.BaseModel():
            return {name: plain(getattr(value, name), is_json=is_json) for name in type(value).model_fields}
    return value


def default_column(field: FieldType) -> pa.Array:
    """The default of a field as an Arrow array of one value, null if it has none."""
    default = None if field.default is PydanticUndefined else plain(field.default, is_json=False)
    value = float(default) if field.kind == "float" and default is not None else default
    return pa.array([value], type=field.arrow())


def event_fields(model: type[pydantic.BaseModel], path: str) -> dict[str, FieldType]:
    """The fields of an event class, in order; every struct in it has a distinct Avro name.

    Raises:
        DeclarationError: see `struct_fields`.
    """
    taken: set[str] = set()
    return {name: _named_apart(field, taken) for name, field in struct_fields(model, path).items()}


def _named_apart(field: FieldType, taken: set[str]) -> FieldType:
    """Append a number to a struct's name if an earlier struct has it: `a.b_c` and `a_b.c` both give `a_b_c`."""
    record = field.record
    if record in taken:
        record = next(name for i in itertools.count(2) if (name := f"{field.record}_{i}") not in taken)
    if record:
        taken.add(record)
    item = None if field.item is None else _named_apart(field.item, taken)
    fields = tuple((name, _named_apart(inner, taken)) for name, inner in field.fields)
    return replace(field, record=record, item=item, fields=fields)


def struct_fields(model: type[pydantic.BaseModel], path: str, parents: tuple[type, ...] = ()) -> dict[str, FieldType]:
    """The fields of a pydantic class, in order.

    Raises:
        DeclarationError: a field has no columnar equivalent, or the class defines validators.
    """
    if model in parents:
        raise DeclarationError(f"{path}: {model.__name__} contains itself; a column cannot. Use a list of its keys")
    decorators = model.__pydantic_decorators__
    own = [*decorators.field_validators, *decorators.model_validators, *decorators.root_validators]
    if own:
        raise DeclarationError(
            f"{path}: validator {own[0]!r} is a Python function, and events are checked as columns; "
            "write the rule with Field(ge=, le=, min_length=, pattern=, ...) or Literal",
        )
    if not model.model_fields:
        raise DeclarationError(f"{path}: {model.__name__} has no field; declare at least one")
    fields = {
        name: _of_field(info, name, f"{path}.{name}", (*parents, model)) for name, info in model.model_fields.items()
    }
    names = [each for name, field in fields.items() for each in (name, *field.aliases)]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise DeclarationError(f"{path}: {doubled[0]!r} is the name or an old name of two fields; each needs its own")
    return fields


def _of_field(info: FieldInfo, name: str, path: str, parents: tuple[type, ...]) -> FieldType:
    aliases = _old_names(info, name, path)
    annotated = _of_annotation(info.annotation, tuple(info.metadata), path, parents)
    default = info.default
    if info.default_factory is not None:
        if info.default_factory is not list:
            raise DeclarationError(f"{path}: default_factory runs once an event; give a constant default or `list`")
        default = []
    if default is None and not annotated.nullable:
        raise DeclarationError(f"{path}: the default is None; annotate the field as `... | None`")
    field = replace(annotated, default=default, aliases=aliases)
    try:
        default_column(field)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
        raise DeclarationError(f"{path}: the default {default!r} is no {annotated.kind}: {exc}") from exc
    return field


def _old_names(info: FieldInfo, name: str, path: str) -> tuple[str, ...]:
    """The field's names in older events, in lookup order."""
    alias = info.validation_alias
    if info.alias is None and alias is None:
        return ()
    choices = alias.choices if isinstance(alias, pydantic.AliasChoices) else []
    old = tuple(choice for choice in choices[1:] if isinstance(choice, str))
    if info.alias is not None or choices[:1] != [name] or len(old) != len(choices) - 1:
        raise DeclarationError(
            f"{path}: aliases are for old names only; give the field the name that new events have, and write "
            f'Field(validation_alias=AliasChoices("{name}", "<the old name>"))'
        )
    return old


def _of_annotation(annotation: Any, metadata: tuple[Any, ...], path: str, parents: tuple[type, ...]) -> FieldType:
    origin = get_origin(annotation)
    if origin is Annotated:
        bare, *extra = get_args(annotation)
        return _of_annotation(bare, (*metadata, *extra), path, parents)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not type(None)]
        if len(choices) != 1:
            raise DeclarationError(f"{path}: {annotation} is a union; a column has one type. Allowed: {_SUPPORTED}")
        return replace(_of_annotation(choices[0], metadata, path, parents), nullable=len(get_args(annotation)) > 1)
    rules = tuple(rule for item in metadata for rule in rules_in(item, path))
    if origin is Literal:
        field = _closed_set(get_args(annotation), rules, path)
    elif origin is list and get_args(annotation):
        item = _of_annotation(get_args(annotation)[0], (), f"{path}[]", parents)
        field = FieldType("list", item=item, rules=rules)
    else:
        field = _of_class(annotation, rules, path, parents)
    refuse_unfit(rules, field.kind, path)
    return field


def _of_class(annotation: Any, rules: tuple[Rule, ...], path: str, parents: tuple[type, ...]) -> FieldType:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _closed_set([member.value for member in annotation], rules, path)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        fields = struct_fields(annotation, path, parents)
        return FieldType("struct", fields=tuple(fields.items()), record=_record_name(path))
    if annotation in _LEAVES:
        return FieldType(_LEAVES[annotation], rules=rules)
    raise DeclarationError(
        f"{path}: {getattr(annotation, '__name__', annotation)} has no column type; use {_SUPPORTED}"
    )


def _record_name(path: str) -> str:
    """An Avro name for the struct at `path`; `event_fields` makes it unique."""
    return re.sub(r"\W+", "_", path.removeprefix("event ")).strip("_")


def _closed_set(values: Iterable[Any], rules: tuple[Rule, ...], path: str) -> FieldType:
    present = tuple(value.value if isinstance(value, enum.Enum) else value for value in values if value is not None)
    nullable = any(value is None for value in values)
    if present and all(isinstance(value, str) for value in present):
        return FieldType("text", nullable, rules, present)
    if present and all(type(value) is int for value in present):
        return FieldType("int", nullable, rules, present)
    raise DeclarationError(f"{path}: a Literal or Enum holds only str values, or only int values; found {present!r}")
