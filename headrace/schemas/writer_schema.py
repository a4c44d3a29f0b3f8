"""Payloads of another version of an event: their writer's Avro schema as field types, and their rows made to fit.

Source: Avro 1.12 specification, "Schema Resolution". Supported are the types that events have, Avro's `int` and unions
of null and one type in either order; a writer with float, enum, fixed, map or other unions is refused by name.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from headrace.errors import DeclarationError
from headrace.schemas.conform import conform
from headrace.schemas.event import EventSpec
from headrace.schemas.field_types import FieldType, Kind
from headrace.schemas.program import NESTS_MAX

_LEAVES: dict[str, Kind] = {
    "int": "int",
    "long": "int",
    "double": "float",
    "boolean": "bool",
    "string": "text",
    "bytes": "bytes",
    "timestamp-micros": "time",
}


def writer_fields(schema: Mapping[str, Any]) -> dict[str, FieldType]:
    """The fields of a writer's record, in the order of its datums.

    Raises:
        DeclarationError: the schema has a type that no column here has.
    """
    known: dict[str, Mapping[str, Any]] = {}
    return _record(schema, known, str(schema.get("name", "record")))


def resolve(frame: pl.DataFrame, spec: EventSpec) -> pl.DataFrame:
    """Rows of a writer's fields as rows of the event.

    Long is read as double, fields that are absent take their default, fields that the event lacks are dropped.

    Raises:
        SchemaError: the event needs a field that the writer lacks, or of another type.
    """
    promoted = [
        pl.col(name).cast(pl.Float64)
        for name, found in spec.types.items()
        if found.kind == "float" and frame.schema.get(name) == pl.Int64
    ]
    return conform(frame.with_columns(promoted), spec)


def _record(schema: Mapping[str, Any], known: dict[str, Mapping[str, Any]], path: str) -> dict[str, FieldType]:
    if schema.get("type") != "record" or not schema.get("fields"):
        raise DeclarationError(f"writer schema {path}: {schema.get('type')!r} is no record with fields")
    if path.count(".") + path.count("[]") > NESTS_MAX // 2 - 2:
        raise DeclarationError(f"writer schema {path}: nested more than {NESTS_MAX // 2 - 2} deep, or without end")
    known[schema["name"]] = schema
    return {field["name"]: _field(field["type"], known, f"{path}.{field['name']}") for field in schema["fields"]}


def _field(found: Any, known: dict[str, Mapping[str, Any]], path: str) -> FieldType:
    if isinstance(found, list):
        branches = [branch for branch in found if branch != "null"]
        if len(branches) == 1 and len(found) == 2:
            inner = _field(branches[0], known, path)
            return FieldType(inner.kind, True, item=inner.item, fields=inner.fields, null_branch=found.index("null"))
        raise DeclarationError(f"writer schema {path}: union {found!r}; only null and one type is read")
    name = found if isinstance(found, str) else found.get("logicalType", found["type"])
    if name in known:
        return FieldType("struct", fields=tuple(_record(known[name], known, path).items()))
    if name == "array":
        return FieldType("list", item=_field(found["items"], known, f"{path}[]"))
    if name == "record":
        return FieldType("struct", fields=tuple(_record(found, known, path).items()))
    if name not in _LEAVES:
        raise DeclarationError(f"writer schema {path}: {name!r} is not read here; write one of {', '.join(_LEAVES)}")
    return FieldType(_LEAVES[name])
