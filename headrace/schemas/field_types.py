"""What one declared field is: the tree that Avro, Arrow and Polars types and the quality rules are made from.

A `FieldType` is a leaf (int, float, bool, text, bytes, time), a list of one item type, or a struct of named fields.
Whatever has no exact columnar twin is refused here, with the class, the field and what to write instead.
"""

import enum
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import polars as pl
import pyarrow as pa
import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from headrace.errors import DeclarationError

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
_BOUNDS: dict[type, str] = {
    annotated_types.Ge: "ge",
    annotated_types.Gt: "gt",
    annotated_types.Le: "le",
    annotated_types.Lt: "lt",
    annotated_types.MinLen: "min_length",
    annotated_types.MaxLen: "max_length",
    annotated_types.MultipleOf: "multiple_of",
}
_SUPPORTED = "int, float, bool, str, bytes, datetime, Literal, Enum, X | None, list[X] or a pydantic model"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Rule:
    """One constraint: `name` is ge, gt, le, lt, min_length, max_length, multiple_of, pattern or finite."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class FieldType:
    """A node of a field's type tree.

    `allowed` is the closed set of a Literal or Enum; `fields` are a struct's, in order; `item` is a list's; a field
    without `default` (PydanticUndefined) that is not `nullable` must be there in every event. `null_branch` is null's
    place in the Avro union, first in our own schemas; `aliases` are names that older events have for the field.
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

    @property
    def required(self) -> bool:
        """Must every event carry a value?"""
        return not self.nullable and self.default is PydanticUndefined

    def polars(self) -> pl.DataType:
        """The column type in frames."""
        if self.kind == "list":
            assert self.item is not None
            return pl.List(self.item.polars())
        if self.kind == "struct":
            return pl.Struct({name: field.polars() for name, field in self.fields})
        return _POLARS[self.kind]

    def arrow(self) -> pa.DataType:
        """The Arrow type, with 64-bit offsets; what lies below a list or struct is nullable, as Polars writes it."""
        if self.kind == "list":
            assert self.item is not None
            return pa.large_list(self.item.arrow())
        if self.kind == "struct":
            return pa.struct([pa.field(name, field.arrow()) for name, field in self.fields])
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
        # Avro ignores attributes it does not know: the closed set rides along for the lock file.
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


def plain(value: Any) -> Any:
    """A default as JSON holds it: enums by value, times in microseconds, bytes as latin-1 (Avro's own rule)."""
    match value:
        case enum.Enum():
            return value.value
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (aware - _EPOCH) // (datetime.resolution)
        case bytes():
            return value.decode("latin-1")
        case list():
            return [plain(item) for item in value]
        case pydantic.BaseModel():
            return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    return value


def struct_fields(model: type[pydantic.BaseModel], path: str, parents: tuple[type, ...] = ()) -> dict[str, FieldType]:
    """The fields of a pydantic class, in order.

    Raises:
        DeclarationError: a field has no columnar twin, or the class has validators of its own.
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
    found = {
        name: _of_field(info, name, f"{path}.{name}", (*parents, model)) for name, info in model.model_fields.items()
    }
    names = [each for name, field in found.items() for each in (name, *field.aliases)]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise DeclarationError(f"{path}: {doubled[0]!r} is the name or an old name of two fields; each needs its own")
    return found


def _of_field(info: FieldInfo, name: str, path: str, parents: tuple[type, ...]) -> FieldType:
    aliases = _old_names(info, name, path)
    found = _of_annotation(info.annotation, tuple(info.metadata), path, parents)
    default = info.default
    if info.default_factory is not None:
        if info.default_factory is not list:
            raise DeclarationError(f"{path}: default_factory runs once an event; give a constant default or `list`")
        default = []
    if default is None and not found.nullable:
        raise DeclarationError(f"{path}: the default is None; annotate the field as `... | None`")
    return replace(found, default=default, aliases=aliases)


def _old_names(info: FieldInfo, name: str, path: str) -> tuple[str, ...]:
    """Names that older events have for the field, in the order in which they are looked for."""
    found = info.validation_alias
    if info.alias is None and found is None:
        return ()
    choices = found.choices if isinstance(found, pydantic.AliasChoices) else []
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
    rules = tuple(rule for item in metadata for rule in _rules(item, path))
    if origin is Literal:
        return _closed_set(get_args(annotation), rules, path)
    if origin is list and get_args(annotation):
        item = _of_annotation(get_args(annotation)[0], (), f"{path}[]", parents)
        return FieldType("list", item=item, rules=rules)
    return _of_class(annotation, rules, path, parents)


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
    """An Avro name for the struct at `path`: unique in the event, so that no record is ever written as a reference."""
    return re.sub(r"\W+", "_", path.removeprefix("event ")).strip("_")


def _closed_set(values: Iterable[Any], rules: tuple[Rule, ...], path: str) -> FieldType:
    present = tuple(value.value if isinstance(value, enum.Enum) else value for value in values if value is not None)
    nullable = any(value is None for value in values)
    for python, kind in ((str, "text"), (int, "int")):
        if present and all(type(value) is python or (python is str and isinstance(value, str)) for value in present):
            return FieldType("text" if kind == "text" else "int", nullable, rules, present)
    raise DeclarationError(f"{path}: a Literal or Enum holds only str values, or only int values; found {present!r}")


def _rules(item: Any, path: str) -> list[Rule]:
    """The rules in one piece of annotation metadata; pieces that only describe give none."""
    if type(item) in _BOUNDS:
        name = _BOUNDS[type(item)]
        return [Rule(name, getattr(item, name))]
    if isinstance(item, pydantic.StringConstraints):
        return _text_rules(item, path)
    if isinstance(item, FieldInfo | annotated_types.GroupedMetadata):
        pieces = item.metadata if isinstance(item, FieldInfo) else item
        return [rule for piece in pieces for rule in _rules(piece, path)]
    general = isinstance(item, annotated_types.BaseMetadata) and hasattr(item, "__dict__")  # Field(pattern=...)
    if general or isinstance(item, pydantic.AllowInfNan):
        return _general_rules(vars(item), path)
    if isinstance(item, annotated_types.BaseMetadata) or hasattr(item, "__get_pydantic_core_schema__"):
        raise DeclarationError(
            f"{path}: {type(item).__name__} is a Python function or an unknown rule, and events are checked as "
            "columns; write the rule with Field(ge=, le=, min_length=, pattern=, ...) or Literal",
        )
    return []


def _text_rules(item: pydantic.StringConstraints, path: str) -> list[Rule]:
    if item.strip_whitespace or item.to_upper or item.to_lower:
        raise DeclarationError(f"{path}: strip_whitespace and to_upper/to_lower change values; do so in a view")
    lengths = [("min_length", item.min_length), ("max_length", item.max_length)]
    rules = [Rule(name, value) for name, value in lengths if value is not None]
    return rules if item.pattern is None else [*rules, _pattern(item.pattern)]


def _general_rules(found: dict[str, Any], path: str) -> list[Rule]:
    rules = []
    for name, value in found.items():
        if name == "pattern":
            rules.append(_pattern(value))
        elif name == "allow_inf_nan":
            rules += [] if value else [Rule("finite", True)]
        elif name not in {"strict", "coerce_numbers_to_str", "union_mode"}:
            raise DeclarationError(f"{path}: Field({name}=...) has no column rule; leave it out")
    return rules


def _pattern(value: str | re.Pattern[str]) -> Rule:
    return Rule("pattern", value if isinstance(value, str) else value.pattern)
