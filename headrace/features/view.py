"""Views: what is declared about an entity, and the plan that follows from it.

    class UserActivity(FeatureView, source=Engagement, entity="user_id"):
        clicks = Count(where=col("action") == "click", windows=("10m", "1h"))
        recent = LastN("item_id", n=50, distinct=True)

has the features `clicks_10m`, `clicks_1h` and `recent`, full names `user_activity.clicks_10m` and so on. A view is
checked when Python reads it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from headrace.errors import DeclarationError, SchemaError
from headrace.features.aggregation import Aggregation
from headrace.features.aggregations.derived import Ratio
from headrace.features.answer import Feature
from headrace.features.binding import LayoutBuilder
from headrace.features.event_rows import EventReader, Rows
from headrace.features.expressions import request_types
from headrace.features.kernels.text_pool import hash_text
from headrace.features.layout import Layout
from headrace.features.rings import RingGroup
from headrace.features.windows import SECOND_US, parse_span_s
from headrace.schemas import Event, spec_of

__all__ = ["FeatureView", "Rows", "ViewPlan", "plan_of"]


class FeatureView:
    """Base of every view.

    Class arguments:
        source: event class, or tuple of classes, that the view reads. Without one the class is a base for other views.
        entity: column, or tuple of columns, that all sources have: one record for each of their values.
        dedupe: span ("10m") in which an event that comes again is left out; None takes every delivery for an event of
            its own. The events need an `id`. An event is known by its class, id and time, as long as its time is less
            than the span before its entity's newest event; of an entity with more than 65,536 events in the span, only
            the newest so many are known. A duplicate that comes later still is counted again. Each event of the span
            costs the record 8 to 13 bytes, in every write.
        ttl: span ("30d") after which the store forgets a record that got no event; None keeps it.
        request: fields that a read brings along, {"price": float}; see features/expressions.py.
        name: name of the view; the class name in snake case if left out.

    Raises:
        DeclarationError: the declaration is wrong; names view, feature and what to write.
    """

    _plan: ClassVar["ViewPlan | None"] = None

    def __init_subclass__(
        cls,
        *,
        source: type[Event] | Sequence[type[Event]] | None = None,
        entity: str | Sequence[str] | None = None,
        dedupe: str | None = None,
        ttl: str | None = None,
        request: Mapping[str, type] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls._plan = None
        if source is None and entity is None:
            return
        view = name or _snake_case(cls.__name__)
        sources = (source,) if isinstance(source, type) else tuple(source or ())
        keys = (entity,) if isinstance(entity, str) else tuple(entity or ())
        if not sources or not keys:
            role, example = ("source", "SomeEvent") if not sources else ("entity", '"some_column"')
            raise DeclarationError(f"view {view}: no {role}; add {role}={example} to the class arguments")
        cls._plan = _plan(cls, view, sources, keys, dedupe, ttl, request or {})


@dataclass(frozen=True, slots=True, eq=False)
class ViewPlan:
    """All that follows from a view.

    Attributes:
        entity: the key columns.
        key_dtype: "int" for a single integer column, else "str".
        features: in declared order, derived ones last.
        fingerprint: 16 hex characters, of all that decides the meaning of a record's bytes; feature names do not.
        ttl_us: life of a record without events, None for ever.
        span_us: how far back a record looks, None if for ever (lifetime windows, lists).
    """

    name: str
    entity: tuple[str, ...]
    key_dtype: str
    sources: tuple[type[Event], ...]
    features: tuple[Feature, ...]
    layout: Layout
    fingerprint: str
    ttl_us: int | None
    span_us: int | None
    readers: dict[type[Event], EventReader]

    @property
    def version(self) -> str:
        """What keys and records of the view begin with."""
        return version_of(self.fingerprint)

    def rows(self, event: type[Event], frame: pl.DataFrame) -> Rows:
        """What the view needs of events: one Polars select, then arrays. Events whose key is null are left out.

        Raises:
            SchemaError: the view does not read `event`, a column is missing or of another type, or a time is null.
        """
        if event not in self.readers:
            names = ", ".join(source.__name__ for source in self.sources)
            raise SchemaError(f"view {self.name}: reads {names}, not {event.__name__}")
        return self.readers[event].rows(frame)


def version_of(fingerprint: str) -> str:
    """The first half of a fingerprint, which tells the few versions of a view apart in keys and records."""
    return fingerprint[:8]


def plan_of(view: type[FeatureView]) -> ViewPlan:
    """The plan of a view; worked out once, when the class is made.

    Raises:
        DeclarationError: a base class without a source.
    """
    if view._plan is None:  # noqa: SLF001
        raise DeclarationError(f"view {view.__name__}: no source; add source=SomeEvent to the class arguments")
    return view._plan  # noqa: SLF001


def _plan(
    view: type[FeatureView],
    name: str,
    sources: tuple[type[Event], ...],
    keys: tuple[str, ...],
    dedupe: str | None,
    ttl: str | None,
    request: Mapping[str, type],
) -> ViewPlan:
    key_dtype = _key_dtype(name, sources, keys)
    entity = f"{key_dtype} {','.join(keys)} of {','.join(source.__name__ for source in sources)}"
    builder = LayoutBuilder(name, sources, entity, request_types(name, request))
    declared, expressions = _aggregations(view, name)
    for attribute, aggregation in sorted(declared.items(), key=lambda item: isinstance(item[1], Ratio)):
        builder.bind(attribute, aggregation)
    builder.bind_expressions(expressions)
    layout = builder.layout(_dedupe_us(name, sources, dedupe))
    return ViewPlan(
        name=name,
        entity=keys,
        key_dtype=key_dtype,
        sources=sources,
        features=tuple(builder.features),
        layout=layout,
        fingerprint=f"{int(hash_text([layout.text]).view(np.uint64)[0]):016x}",
        ttl_us=None if ttl is None else parse_span_s(ttl, f"view {name} · ttl") * SECOND_US,
        span_us=_span_us(layout),
        readers={event: EventReader(name, event, keys, key_dtype, builder, layout) for event in sources},
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


def _aggregations(view: type[FeatureView], name: str) -> tuple[dict[str, Aggregation], dict[str, pl.Expr]]:
    """Attributes that are aggregations, and those that are expressions over features."""
    found: dict[str, Aggregation] = {}
    expressions: dict[str, pl.Expr] = {}
    for base in reversed(view.__mro__):
        for attribute, value in vars(base).items():
            if isinstance(value, pl.Expr):
                expressions[attribute] = value
            elif hasattr(value, "bind") and not isinstance(value, type):
                found[attribute] = value
            elif hasattr(value, "bind"):
                raise DeclarationError(f"view {name} · feature {attribute}: {value.__name__} is a class; call it")
    if not found:
        raise DeclarationError(f'view {name}: no features; write for example: events = Count(windows=("1h", "24h"))')
    return found, expressions


def _key_dtype(name: str, sources: tuple[type[Event], ...], keys: tuple[str, ...]) -> str:
    kinds = set()
    for event in sources:
        schema = spec_of(event).polars
        for key in keys:
            if key not in schema:
                raise DeclarationError(
                    f"view {name}: event {event.__name__} has no entity column {key!r}; it has {', '.join(schema)}",
                )
            dtype = schema[key]
            if not (dtype.is_integer() or dtype == pl.String):
                raise DeclarationError(
                    f"view {name}: entity column {event.__name__}.{key} is {dtype}; use an int or a str"
                )
            kinds.add("int" if dtype.is_integer() and len(keys) == 1 else "str")
    if len(kinds) > 1 and len(keys) == 1:
        raise DeclarationError(
            f"view {name}: entity {keys[0]!r} is an int in one source and a str in another; make them alike"
        )
    return kinds.pop()


def events_of(plans: Iterable[ViewPlan]) -> tuple[type[Event], ...]:
    """The event classes that views read, each once."""
    return tuple(dict.fromkeys(event for plan in plans for event in plan.sources))


def _span_us(layout: Layout) -> int | None:
    spans: list[int] = []
    for group in layout.groups:
        if not isinstance(group, RingGroup) or not group.window.hop_us:
            return None
        spans.append(group.window.window_us + group.window.hop_us)
    return max(spans, default=None)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
