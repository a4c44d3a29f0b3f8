"""The plan of a view: everything derived from its declaration, computed once when Python creates the class.

declaration --> key columns and their types
            --> layout: event columns, groups and readings (binder.py)
            --> one reader of events per source (event_rows.py)
            --> fingerprint: a hash of everything that determines the meaning of a record's bytes
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import xxhash

from headrace.errors import DeclarationError, SchemaError
from headrace.features.aggregations.aggregation import Aggregation, Combination
from headrace.features.answer import Feature
from headrace.features.binder import bind, bind_expressions
from headrace.features.event_rows import EventReader, Rows
from headrace.features.expressions.derived import request_types
from headrace.features.layout_builder import LayoutBuilder
from headrace.features.state.layout import Layout
from headrace.features.windows import SECOND_US, parse_span_s, written_span
from headrace.schemas import Event, spec_of

STATUS, AGE_S = "_status", "_age_s"
"""Columns of a read besides those of the entity and the features."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration as written: class arguments, whose types have been checked, and attributes by name."""

    name: str
    sources: tuple[type[Event], ...]
    entity: tuple[str, ...]
    dedupe: str | None
    ttl: str | None
    request: Mapping[str, Any]
    aggregations: Mapping[str, Aggregation]
    expressions: Mapping[str, pl.Expr]
    declared_in: str


@dataclass(frozen=True, slots=True)
class _Key:
    """An `EntityKey`."""

    name: str
    entity: tuple[str, ...]
    key_dtype: str
    key_kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ViewPlan:
    """Everything derived from a view's declaration.

    Attributes:
        entity: the key columns.
        key_dtype: "int" for a single integer column, else "str".
        key_kinds: for each key column "int" or "text", as the events declare it; "any" if they differ.
        features: in declared order, derived ones last.
        fingerprint: 16 hex characters, a hash of everything that determines the meaning of a record's bytes. Feature
            names are not part of it.
        ttl_us: lifetime of a record without events; None keeps it forever.
        declared_in: `module:Class` of the view.
    """

    name: str
    entity: tuple[str, ...]
    key_dtype: str
    key_kinds: tuple[str, ...]
    sources: tuple[type[Event], ...]
    features: tuple[Feature, ...]
    layout: Layout
    fingerprint: str
    ttl_us: int | None
    readers: dict[type[Event], EventReader]
    declared_in: str

    @property
    def version(self) -> str:
        """Version prefix of the view's keys and records."""
        return version_of(self.fingerprint)

    def only(self, names: Collection[str]) -> "ViewPlan":
        """The plan for reading only the features `names`: nothing else is computed."""
        layout = self.layout.only(names)
        return replace(self, layout=layout, features=tuple(reading.feature for reading in layout.readings))

    def rows(self, event: type[Event], frame: pl.DataFrame) -> Rows:
        """Convert events to the rows that the view needs. Events with a null key are left out.

        Events for which an expression of the view raises, such as a strict cast of a bad text, are left out and listed
        in `Rows.failed`.

        Raises:
            SchemaError: the view does not read `event`, a column is missing or has another type, or a time is null.
        """
        if event not in self.readers:
            names = ", ".join(source.__name__ for source in self.sources)
            raise SchemaError(f"view {self.name}: reads {names}, not {event.__name__}")
        return self.readers[event].rows(frame)


def version_of(fingerprint: str) -> str:
    """The first half of a fingerprint; it distinguishes the versions of a view in keys and records."""
    return fingerprint[:8]


def events_of(plans: Iterable[ViewPlan]) -> tuple[type[Event], ...]:
    """The event classes that views read, each once."""
    return tuple(dict.fromkeys(event for plan in plans for event in plan.sources))


def make_plan(declaration: Declaration) -> ViewPlan:
    """Compute the plan of a view.

    Raises:
        DeclarationError: the declaration is wrong; the message names view, feature and what to write.
    """
    name, sources, keys = declaration.name, declaration.sources, declaration.entity
    _check_names(name, sources, keys)
    key_kinds = _key_kinds(name, sources, keys)
    key_dtype = "int" if key_kinds == ("int",) else "str"
    entity = f"{key_dtype} {','.join(keys)} of {','.join(source.__name__ for source in sources)}"
    builder = LayoutBuilder(name, sources, entity, request_types(name, declaration.request))
    by_need = sorted(declaration.aggregations.items(), key=lambda item: isinstance(item[1], Combination))
    for attribute, aggregation in by_need:
        bind(builder, attribute, aggregation)
    bind_expressions(builder, declaration.expressions)
    for feature in builder.features:
        if feature.name in (*keys, STATUS, AGE_S):
            raise DeclarationError(
                f"view {name} · feature {feature.declared}: a read has a column {feature.name!r} beside the features; "
                "rename the feature"
            )
    layout = builder.layout(_dedupe_us(name, sources, declaration.dedupe))
    key = _Key(name, keys, key_dtype, key_kinds)
    columns = (builder.flags, builder.numbers, builder.bits)
    ttl = declaration.ttl
    return ViewPlan(
        name=name,
        entity=keys,
        key_dtype=key_dtype,
        key_kinds=key_kinds,
        sources=sources,
        features=tuple(builder.features),
        layout=layout,
        fingerprint=xxhash.xxh64_hexdigest(layout.text.encode()),
        ttl_us=None if ttl is None else _ttl_us(name, ttl, builder.spans, layout.dedupe_us),
        readers={event: EventReader(event, key, columns, layout) for event in sources},
        declared_in=declaration.declared_in,
    )


def _dedupe_us(name: str, sources: tuple[type[Event], ...], dedupe: str | None) -> int:
    if dedupe is None:
        return 0
    for event in sources:
        if spec_of(event).id is None:
            raise DeclarationError(
                f"view {name}: dedupe={dedupe!r} knows events by their id, and event {event.__name__} declares none; "
                f'add id="some_column" to the class arguments of {event.__name__}, or leave dedupe= out',
            )
    return parse_span_s(dedupe, f"view {name} · dedupe") * SECOND_US


def _ttl_us(name: str, ttl: str, spans: Mapping[str, int], dedupe_us: int) -> int:
    ttl_us = parse_span_s(ttl, f"view {name} · ttl") * SECOND_US
    longest, span_us = max({**spans, "its dedupe=": dedupe_us}.items(), key=lambda item: item[1])
    if ttl_us < span_us:
        raise DeclarationError(
            f"view {name}: ttl={ttl!r} is shorter than {longest} looks back: the store would forget events that still "
            f"count; write ttl={written_span(span_us // SECOND_US)!r} or more, or leave ttl= out"
        )
    return ttl_us


def _check_names(name: str, sources: tuple[type[Event], ...], keys: tuple[str, ...]) -> None:
    known: dict[str, type[Event]] = {}
    for event in sources:
        if not issubclass(event, Event):
            raise DeclarationError(f"view {name}: source {event.__name__} is no event; write an event class")
        other = known.setdefault(event.__name__, event)
        if other is not event:
            raise DeclarationError(
                f"view {name}: sources {path_of(other)} and {path_of(event)} have one name, by which a view tells its "
                "events apart; rename one of the classes"
            )
    if len(set(keys)) < len(keys):
        raise DeclarationError(f"view {name}: entity {keys} names one column twice; write each once")


def _key_kinds(name: str, sources: tuple[type[Event], ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    key_kinds = []
    for key in keys:
        kinds = set()
        for event in sources:
            schema = spec_of(event).polars
            if key not in schema:
                raise DeclarationError(
                    f"view {name}: event {event.__name__} has no entity column {key!r}; it has {', '.join(schema)}",
                )
            dtype = schema[key]
            if not (dtype.is_integer() or dtype == pl.String):
                raise DeclarationError(
                    f"view {name}: entity column {event.__name__}.{key} is {dtype}; use an int or a str"
                )
            kinds.add("int" if dtype.is_integer() else "text")
        if len(kinds) > 1 and len(keys) == 1:
            raise DeclarationError(
                f"view {name}: entity {key!r} is an int in one source and a str in another; make them alike"
            )
        key_kinds.append("any" if len(kinds) > 1 else kinds.pop())
    return tuple(key_kinds)


def path_of(declared: type) -> str:
    """`module:Class`."""
    return f"{declared.__module__}:{declared.__qualname__}"
