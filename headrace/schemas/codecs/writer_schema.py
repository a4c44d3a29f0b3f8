"""Plans for reading an event's fields from datums with another writer's Avro schema.

`avro_type` parses the schema into a graph of types; `plan_reading` determines how each declared field is read from it.
Only declared fields are read, under their names and old names; all others are skipped, whatever their type.

Source: Avro 1.12 specification, "Names", "Logical Types" and "Schema Resolution". Named types are identified by their
full name; a name without a dot belongs to the enclosing namespace. Logical types that the specification does not have,
or that annotate the wrong type, are ignored, as it requires. Beyond the specification, an enum is read as text, a fixed
as bytes, and a logical time as a time in any unit; `conform` then casts values as it does for files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.errors import SchemaError
from headrace.schemas.codecs.avro_skip import ANY_OF, ARRAY, FIXED_SIZE, MAP, RECORD, SIZED, VARINT, SkipTable
from headrace.schemas.event import EventSpec
from headrace.schemas.fields import DECIMAL_DIGITS, FieldType, Kind, Wire

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
TIMES_OF_DAY = {"time-millis": ("int",), "time-micros": ("long",)}
"""Logical types that are read as numbers, not as times."""
_LOGICAL = {
    "decimal": ("bytes", "fixed"),
    "date": ("int",),
    **TIMES_OF_DAY,
    **{
        f"{kind}-{unit}": ("long",)
        for kind in ("timestamp", "local-timestamp")
        for unit in ("millis", "micros", "nanos")
    },
}
_SIZE_MAX = 1 << 31
_PRIMITIVES: dict[str, Kind] = {
    "int": "int",
    "long": "int",
    "float": "float",
    "double": "float",
    "boolean": "bool",
    "string": "text",
    "bytes": "bytes",
}
_TIME_SCALES = {"millis": 1_000, "micros": 1, "nanos": -1_000, "date": 86_400_000_000}
_DECIMAL_BYTES = 16
_ON_WIRE = {"null": (FIXED_SIZE, 0), "boolean": (FIXED_SIZE, 1), "float": (FIXED_SIZE, 4), "double": (FIXED_SIZE, 8)}
_ON_WIRE |= {"int": (VARINT, 0), "long": (VARINT, 0), "enum": (VARINT, 0), "string": (SIZED, 0), "bytes": (SIZED, 0)}
_COMPOUND = {"record": RECORD, "array": ARRAY, "map": MAP, "union": ANY_OF}


@dataclass(slots=True, eq=False)
class AvroType:
    """A node of the graph. `kind` is a primitive, or record, enum, fixed, array, map or union.

    `logical` is the logical type, empty if there is none or it is ignored. `fields` belong to a record, `items` (the
    type of the values) to an array or map, `branches` to a union, `symbols` to an enum, `size` to a fixed and `scale`
    to a decimal.
    """

    kind: str
    logical: str = ""
    name: str = ""
    fields: list[tuple[str, "AvroType"]] = field(default_factory=list)
    items: "AvroType | None" = None
    branches: list["AvroType"] = field(default_factory=list)
    symbols: tuple[str, ...] = ()
    size: int = 0
    scale: int = 0

    def __str__(self) -> str:
        """The name of the type in messages."""
        if self.kind == "union":
            return f"[{', '.join(map(str, self.branches))}]"
        return " ".join(part for part in (self.kind, self.name, self.logical and f"({self.logical})") if part)


def avro_type(schema: Any) -> AvroType:
    """The type that an Avro schema, parsed as JSON, describes.

    Raises:
        SchemaError: it is not an Avro schema, or names an undefined type.
    """
    try:
        return _parse(schema, "", {})
    except SchemaError:
        raise
    except RecursionError as exc:
        raise SchemaError("the writer's schema is nested too deep") from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SchemaError(f"{str(schema)[:200]} is no Avro schema: {exc!r}") from exc


def _parse(schema: Any, namespace: str, names: dict[str, AvroType]) -> AvroType:
    if isinstance(schema, list):
        branches = [_parse(branch, namespace, names) for branch in schema]
        if not branches or any(branch.kind == "union" for branch in branches):
            raise SchemaError(f"{str(schema)[:200]}: a union has types, and none of them is a union")
        return AvroType("union", branches=branches)
    if isinstance(schema, str):
        return _named(schema, namespace, names)
    kind = schema["type"]
    if not isinstance(kind, str):  # {"type": {"type": ...}}
        return _parse(kind, namespace, names)
    if kind in ("array", "map"):
        return AvroType(kind, items=_parse(schema["items" if kind == "array" else "values"], namespace, names))
    if kind in ("record", "error", "enum", "fixed"):
        return _definition(schema, kind, namespace, names)
    node = _named(kind, namespace, names)
    return AvroType(kind, _logical(schema, kind), scale=_scale(schema)) if kind in PRIMITIVES else node


def _named(name: str, namespace: str, names: Mapping[str, AvroType]) -> AvroType:
    if name in PRIMITIVES:
        return AvroType(name)
    full = _full_name(name, namespace)
    if full not in names and name not in names:
        raise SchemaError(
            f"the type {full!r} is not defined in the schema; schema references are not followed, so write it out"
        )
    return names[full] if full in names else names[name]


def _definition(schema: Mapping[str, Any], kind: str, namespace: str, names: dict[str, AvroType]) -> AvroType:
    full = _full_name(schema["name"], schema.get("namespace", namespace))
    node = AvroType("record" if kind == "error" else kind, name=full)
    names[full] = node
    if kind == "enum":
        node.symbols = tuple(str(symbol) for symbol in schema["symbols"])
    elif kind == "fixed":
        node.size, node.logical, node.scale = int(schema["size"]), _logical(schema, kind), _scale(schema)
        if not 0 <= node.size < _SIZE_MAX:
            raise SchemaError(f"fixed {full}: a size of {node.size}")
    else:
        inside = full.rpartition(".")[0]
        node.fields = [(field["name"], _parse(field["type"], inside, names)) for field in schema["fields"]]
        if len(dict(node.fields)) < len(node.fields):
            raise SchemaError(f"record {full}: two fields of one name")
    return node


def _full_name(name: str, namespace: str | None) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _logical(schema: Mapping[str, Any], kind: str) -> str:
    logical = schema.get("logicalType")
    return str(logical) if isinstance(logical, str) and kind in _LOGICAL.get(logical, ()) else ""


def _scale(schema: Mapping[str, Any]) -> int:
    scale = schema.get("scale", 0)
    return scale if isinstance(scale, int) else 0


class OtherTypeError(SchemaError):
    """A declared field has a type in the writer's schema from which it cannot be read."""


@dataclass(frozen=True, slots=True)
class WriterPlan:
    """The plan for reading a writer's datums: `fields` in the order of the wire, and the arrays of a skip table."""

    fields: list[tuple[str, FieldType]]
    nodes: NDArray[np.int64]
    links: NDArray[np.int64]


def plan_reading(schema: Any, spec: EventSpec) -> WriterPlan:
    """Plan the reading of datums with an Avro schema, parsed as JSON.

    Raises:
        SchemaError: the schema is not a record.
        OtherTypeError: a declared field has a type in the schema from which it cannot be read.
    """
    written = avro_type(schema)
    if written.kind != "record":
        raise SchemaError(f"the writer's schema is {written}; an event is a record")
    planner = _Planner()
    try:
        fields = planner.fields(written, spec.types, f"event {spec.name}")
        return WriterPlan(fields, *planner.skips.arrays())
    except RecursionError as exc:
        raise SchemaError(f"the writer's schema {written} is nested too deep") from exc


class _Planner:
    """Planner of fields, with the skip table and the node of each type in it."""

    def __init__(self) -> None:
        self.skips = SkipTable()
        self._nodes: dict[int, int] = {}  # by the type's identity, since types may contain themselves

    def fields(self, record: AvroType, wanted: Mapping[str, FieldType], path: str) -> list[tuple[str, FieldType]]:
        """The fields of a record in the order of the wire; adjacent undeclared fields are skipped together."""
        written_names = dict(record.fields)
        declared = {
            written_name: (name, field)
            for name, field in wanted.items()
            if (written_name := field.name_in(written_names, name))
        }
        planned: list[tuple[str, FieldType]] = []
        skipped: list[AvroType] = []
        for written_name, written in record.fields:
            if written_name not in declared:
                skipped.append(written)
                continue
            planned += self._skip(skipped, len(planned))
            skipped = []
            name, field = declared[written_name]
            planned.append((written_name, self.field(written, field, f"{path}.{name}")))
        return planned + self._skip(skipped, len(planned))

    def _skip(self, types: Sequence[AvroType], index: int) -> list[tuple[str, FieldType]]:
        if not types:
            return []
        node = self._node(types[0])
        if len(types) > 1:
            node = self.skips.add(RECORD)
            self.skips.link(node, [self._node(written) for written in types])
        return [(f"(undeclared fields {index})", FieldType("int", wire=Wire("skip", node)))]

    def _node(self, written: AvroType) -> int:
        """The node of a type in the skip table."""
        if id(written) in self._nodes:
            return self._nodes[id(written)]
        if written.kind == "fixed":
            return self.skips.add(FIXED_SIZE, written.size)
        if written.kind in _ON_WIRE:
            return self.skips.add(*_ON_WIRE[written.kind])
        node = self._nodes[id(written)] = self.skips.add(_COMPOUND[written.kind])
        items = [] if written.items is None else [written.items]
        parts = [*(inner for _, inner in written.fields), *written.branches, *items]
        self.skips.link(node, [self._node(part) for part in parts])
        return node

    def field(self, written: AvroType, wanted: FieldType, path: str) -> FieldType:
        """The type as which a value of the writer's type is read for a field of the event."""
        if written.kind != "union":
            read = self._read(written, wanted, path)
            if read is None:
                raise OtherTypeError(f"{path}: the writer has {written}, and the event declares {wanted.kind}")
            return read
        null = [place for place, branch in enumerate(written.branches) if branch.kind == "null"]
        others = [branch for branch in written.branches if branch.kind != "null"]
        if len(null) == len(others) == 1:
            return replace(self.field(others[0], wanted, path), nullable=True, null_branch=null[0])
        return self._union(written, wanted, path)

    def _union(self, written: AvroType, wanted: FieldType, path: str) -> FieldType:
        """A union of several types: branches that the field can hold are read, values of other branches are bad."""
        branches: list[FieldType | Literal["null", "refused"]] = []
        for branch in written.branches:
            read = None if branch.kind == "null" else self._read(branch, wanted, path)
            is_fitting = read is not None and _fits(read, wanted)
            branches.append("null" if branch.kind == "null" else read if read and is_fitting else "refused")
        fitting = [branch for branch in branches if isinstance(branch, FieldType)]
        if not fitting or (wanted.kind in ("list", "struct") and len(fitting) > 1):
            raise OtherTypeError(f"{path}: the writer has the union {written}, and the event declares {wanted.kind}")
        return FieldType(fitting[0].kind, nullable=True, wire=Wire("union", branches=tuple(branches)))

    def _read(self, written: AvroType, wanted: FieldType, path: str) -> FieldType | None:
        """The type as which a value of a non-union type is read; None if it cannot be read."""
        match written.kind:
            case "array" if wanted.item is not None and written.items is not None:
                return FieldType("list", item=self.field(written.items, wanted.item, f"{path}[]"))
            case "record" if wanted.kind == "struct":
                fields = self.fields(written, dict(wanted.fields), path)
                if all(field.is_skipped for _, field in fields):
                    raise OtherTypeError(
                        f"{path}: the writer's {written} has none of the fields that the event declares"
                    )
                return FieldType("struct", fields=tuple(fields))
            case "null":
                return FieldType("int", wire=Wire("null", self._node(written)))
            case "enum" if written.symbols:
                return FieldType("text", wire=Wire("enum", len(written.symbols), written.symbols))
        is_no_moment = wanted.kind == "time" and written.logical in TIMES_OF_DAY
        return None if is_no_moment else _leaf(written, wanted)


def _leaf(written: AvroType, wanted: FieldType) -> FieldType | None:
    if written.logical == "decimal" and wanted.kind != "bytes":
        return _decimal(written)
    if written.logical and written.logical not in ("decimal", *TIMES_OF_DAY):
        scale = _TIME_SCALES[written.logical.rpartition("-")[2]]
        return FieldType("time", wire=None if scale == 1 else Wire("scaled", scale))
    if written.kind == "fixed":
        return FieldType("bytes", wire=Wire("fixed", written.size))
    if written.kind in ("int", "long") and wanted.kind == "float":
        return FieldType("float", wire=Wire("long"))
    if written.kind == "float":
        return FieldType("float", wire=Wire("float32"))
    return FieldType(_PRIMITIVES[written.kind]) if written.kind in _PRIMITIVES else None


def _decimal(written: AvroType) -> FieldType | None:
    if not 0 <= written.scale <= DECIMAL_DIGITS or written.size > _DECIMAL_BYTES:
        return None
    kind: Literal["fixed", "decimal"] = "fixed" if written.kind == "fixed" else "decimal"
    return FieldType("bytes", wire=Wire(kind, written.size, scale=written.scale))


def _fits(read: FieldType, wanted: FieldType) -> bool:
    """Whether the field can hold the branch of a union: same kind, without a cast that may lose information."""
    return read.kind == wanted.kind and (read.wire is None or read.wire.scale is None)
