"""An Avro schema as a graph of types: names resolved, logical types known, whatever a JSON document may hold refused.

Source: Avro 1.12 specification, "Names" and "Logical Types". A named type is known by its full name; a name without a
dot is of the namespace around it. Logical types that the specification does not have, or that stand on another type
than it says, are ignored, as it demands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import SchemaError

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
TIMES_OF_DAY = {"time-millis": ("int",), "time-micros": ("long",)}
"""Read as their numbers, but never as moments."""
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


@dataclass(slots=True, eq=False)
class AvroType:
    """A node of the graph. `kind` is a primitive, or record, enum, fixed, array, map or union.

    `logical` is empty where there is none that counts; `fields` are a record's, `items` the type of an array's or map's
    values, `branches` a union's, `symbols` an enum's, `size` a fixed's, `scale` a decimal's.
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
        """What messages call it."""
        if self.kind == "union":
            return f"[{', '.join(map(str, self.branches))}]"
        return " ".join(part for part in (self.kind, self.name, self.logical and f"({self.logical})") if part)


def avro_type(schema: Any) -> AvroType:
    """The type that an Avro schema, parsed as JSON, describes.

    Raises:
        SchemaError: it is no Avro schema, or names a type that it does not define.
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
