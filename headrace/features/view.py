"""Views: what is declared about an entity, and the plan that follows from it.

    class UserActivity(FeatureView, source=Engagement, entity="user_id"):
        clicks = Count(where=col("action") == "click", windows=("10m", "1h"))
        recent = LastN("item_id", n=50, distinct=True)

has the features `clicks_10m`, `clicks_1h` and `recent`, full names `user_activity.clicks_10m` and so on. A view is
checked when Python reads it; docs/views.md shows all that one can say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import xxhash

from headrace.errors import DeclarationError, SchemaError
from headrace.features.aggregation import Aggregation
from headrace.features.aggregations.derived import Ratio
from headrace.features.answer import Feature
from headrace.features.binder import LayoutBuilder
from headrace.features.event_rows import EventReader, Rows
from headrace.features.expressions.derived import request_types
from headrace.features.state.layout import Layout
from headrace.features.windows import SECOND_US, parse_span_s, written_span
from headrace.schemas import Event, spec_of
from headrace.schemas.event import refuse_unknown

__all__ = ["FeatureView", "Rows", "ViewPlan", "plan_of"]

STATUS, AGE_S = "_status", "_age_s"
"""Columns of a read beside the entity's and the features'."""
_CLASS_ARGUMENTS = ("source", "entity", "dedupe", "ttl", "request", "name")


class _Body(dict[str, Any]):
    """The attributes of a view while Python reads its body, each feature written once."""

    def __init__(self, class_name: str, view: str | None) -> None:
        super().__init__()
        self._class_name, self._view = class_name, view

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self and (_is_feature(self[name]) or _is_feature(value)):
            view = self._view or _snake_case(self._class_name)
            raise DeclarationError(f"view {view} · feature {name}: written twice in one class; rename one of them")
        super().__setitem__(name, value)


class _ViewType(type):
    """Type of the views: it sees a name that is written twice, of which a class would keep the last."""

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body(name, kwargs.get("name"))


class FeatureView(metaclass=_ViewType):
    """Base of every view.

    Class arguments:
        source: event class, or tuple of classes, that the view reads. Without one the class is a base for other views.
        entity: column, or tuple of columns, that all sources have: one record for each of their values.
        dedupe: span ("10m") in which an event that comes again is left out; None takes every delivery for an event of
            its own. The events need an `id`. An event is known by its class, id and time, as long as its time is less
            than the span before its entity's newest event; of an entity with more than 65,536 events in the span, only
            the newest so many are known. A duplicate that comes later still is counted again. Each event of the span
            costs the record 8 to 13 bytes, in every write.
        ttl: span ("30d") after which the store forgets a record that got no event; None keeps it. No window is longer,
            so windowed values never lack an event for it. What looks back for ever (lifetime windows, lists, decayed
            sums) starts anew with an entity's next event; a replay knows no ttl and remembers.
        request: fields that a read brings along, {"price": float}; see features/expressions.py.
        name: name of the view, of lower-case letters, digits and _; the class name in snake case if left out.

    A subclass has the features of its bases; an attribute written again replaces that of a base, and None removes it.

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
        **unknown: Any,
    ) -> None:
        super().__init_subclass__()
        cls._plan = None
        view = _snake_case(cls.__name__) if name is None else name
        refuse_unknown(f"view {view}", unknown, _CLASS_ARGUMENTS)
        if all(given is None for given in (source, entity, dedupe, ttl, request, name)):
            return
        _require_plain(view)
        sources = _several(f"view {view}: source", source, type, "SomeEvent")
        keys = _several(f"view {view}: entity", entity, str, '"some_column"')
        if not sources or not keys:
            role, example = ("source", "SomeEvent") if not sources else ("entity", '"some_column"')
            raise DeclarationError(f"view {view}: no {role}; add {role}={example} to the class arguments")
        if request is not None and not isinstance(request, Mapping):
            raise DeclarationError(
                f'view {view}: request={request!r}; write a dict of types, such as {{"price": float}}'
            )
        cls._plan = _plan(cls, view, sources, keys, dedupe, ttl, request or {})


@dataclass(frozen=True, slots=True, eq=False)
class ViewPlan:
    """All that follows from a view.

    Attributes:
        entity: the key columns.
        key_dtype: "int" for a single integer column, else "str".
        key_kinds: of each key column, "int" or "text" as the events declare it, "any" where they differ.
        features: in declared order, derived ones last.
        fingerprint: 16 hex characters, of all that decides the meaning of a record's bytes; feature names do not.
        ttl_us: life of a record without events, None for ever.
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
        """What keys and records of the view begin with."""
        return version_of(self.fingerprint)

    def rows(self, event: type[Event], frame: pl.DataFrame) -> Rows:
        """What the view needs of events: one Polars select, then arrays. Events whose key is null are left out.

        So are those that an expression of the view has no value for, as a text that a strict cast cannot convert; they
        are listed in `Rows.failed`.

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
        DeclarationError: no view, or a base class without a source.
    """
    if not (isinstance(view, type) and issubclass(view, FeatureView)):
        found = f"class {view.__module__}:{view.__qualname__}" if isinstance(view, type) else repr(view)
        raise DeclarationError(
            f"{found} is no view; name a class declared as `class SomeView(FeatureView, source=..., entity=...)`"
        )
    if view._plan is None:  # noqa: SLF001
        raise DeclarationError(f"view {view.__name__}: no source; add source=SomeEvent to the class arguments")
    return view._plan  # noqa: SLF001


def is_base(view: type[FeatureView]) -> bool:
    """Whether a view has no source: a base that hands its features on, with no plan of its own."""
    return view._plan is None  # noqa: SLF001


def plans_of(views: Iterable[type[FeatureView]], role: str) -> list[ViewPlan]:
    """The plans of views that are used together; `role` says in errors what uses them ("replay").

    Raises:
        DeclarationError: as `plan_of`; none, one given twice, or two of one name.
    """
    plans = [plan_of(view) for view in views]
    if not plans:
        raise DeclarationError(f"{role}: no views; give at least one")
    known: dict[str, ViewPlan] = {}
    for plan in plans:
        other = known.get(plan.name)
        if other is not None and other.declared_in == plan.declared_in:
            raise DeclarationError(f"{role}: view {plan.name} ({plan.declared_in}) is given twice; give it once")
        if other is not None:
            raise DeclarationError(
                f"{role}: {other.declared_in} and {plan.declared_in} have one name, {plan.name!r}, under which the "
                'store keeps their records; give one of them another name="..." in its class arguments'
            )
        known[plan.name] = plan
    return plans


def _plan(
    view: type[FeatureView],
    name: str,
    sources: tuple[type[Event], ...],
    keys: tuple[str, ...],
    dedupe: str | None,
    ttl: str | None,
    request: Mapping[str, type],
) -> ViewPlan:
    _check_names(name, sources, keys)
    key_kinds = _key_kinds(name, sources, keys)
    key_dtype = "int" if key_kinds == ("int",) else "str"
    entity = f"{key_dtype} {','.join(keys)} of {','.join(source.__name__ for source in sources)}"
    builder = LayoutBuilder(name, sources, entity, request_types(name, request))
    declared, expressions = _aggregations(view, name)
    for attribute, aggregation in sorted(declared.items(), key=lambda item: isinstance(item[1], Ratio)):
        builder.bind(attribute, aggregation)
    builder.bind_expressions(expressions)
    for feature in builder.features:
        if feature.name in (*keys, STATUS, AGE_S):
            raise DeclarationError(
                f"view {name} · feature {feature.declared}: a read has a column {feature.name!r} beside the features; "
                "rename the feature"
            )
    layout = builder.layout(_dedupe_us(name, sources, dedupe))
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
        readers={event: EventReader(name, event, keys, key_dtype, builder, layout) for event in sources},
        declared_in=_place(view),
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


def _aggregations(view: type[FeatureView], name: str) -> tuple[dict[str, Aggregation], dict[str, pl.Expr]]:
    """Attributes that are aggregations, and those that are expressions over features."""
    declared: dict[str, Any] = {}
    for base in reversed(view.__mro__):
        _refuse_lost(name, base)
        for attribute, value in vars(base).items():
            if _is_feature(value):
                declared[attribute] = value
            elif attribute in declared:
                if value is not None:
                    raise DeclarationError(
                        f"view {name} · feature {attribute}: {value!r} hides a feature of a base; write None to "
                        "remove it, or rename one"
                    )
                del declared[attribute]
    expressions = {attribute: value for attribute, value in declared.items() if isinstance(value, pl.Expr)}
    found = {attribute: value for attribute, value in declared.items() if attribute not in expressions}
    if not found:
        raise DeclarationError(f'view {name}: no features; write for example: events = Count(windows=("1h", "24h"))')
    return found, expressions


def _refuse_lost(name: str, base: type) -> None:
    """Raise where a class holds a feature in a form that would be passed over."""
    for attribute, annotation in vars(base).get("__annotations__", {}).items():
        if _is_feature(annotation) and not isinstance(annotation, type):
            raise DeclarationError(
                f"view {name} · feature {attribute}: write {attribute} = ... instead of {attribute}: ..."
            )
    for attribute, value in vars(base).items():
        path = f"view {name} · feature {attribute}"
        if _is_feature(value) and isinstance(value, type):
            raise DeclarationError(f"{path}: {value.__name__} is a class; call it")
        held = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list | set) else ()
        if attribute != "__annotations__" and any(_is_feature(item) for item in held):
            raise DeclarationError(f"{path}: a {type(value).__name__}; write one feature, with no comma behind it")


def _is_feature(value: Any) -> bool:
    return isinstance(value, pl.Expr) or hasattr(value, "bind")


def _require_plain(view: object) -> None:
    if not isinstance(view, str) or not re.fullmatch("[a-z0-9_]+", view):
        raise DeclarationError(
            f"view {view}: a view's name is part of the store's keys; give it one of lower-case letters, digits and "
            '_, as name="some_view"'
        )


def _several(what: str, given: Any, kind: type, example: str) -> tuple[Any, ...]:
    """None, one or several of a kind, as a tuple."""
    found = () if given is None else (given,) if isinstance(given, str | type) else given
    if not isinstance(found, tuple | list) or not all(isinstance(item, kind) for item in found):
        raise DeclarationError(f"{what}={given!r}; write {example} or a tuple of such")
    return tuple(found)


def _check_names(name: str, sources: tuple[type[Event], ...], keys: tuple[str, ...]) -> None:
    known: dict[str, type[Event]] = {}
    for event in sources:
        if not issubclass(event, Event):
            raise DeclarationError(f"view {name}: source {event.__name__} is no event; write an event class")
        other = known.setdefault(event.__name__, event)
        if other is not event:
            raise DeclarationError(
                f"view {name}: sources {_place(other)} and {_place(event)} have one name, by which a view tells its "
                "events apart; rename one of the classes"
            )
    if len(set(keys)) < len(keys):
        raise DeclarationError(f"view {name}: entity {keys} names one column twice; write each once")


def _place(declared: type) -> str:
    return f"{declared.__module__}:{declared.__qualname__}"


def _key_kinds(name: str, sources: tuple[type[Event], ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    found = []
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
        found.append("any" if len(kinds) > 1 else kinds.pop())
    return tuple(found)


def events_of(plans: Iterable[ViewPlan]) -> tuple[type[Event], ...]:
    """The event classes that views read, each once."""
    return tuple(dict.fromkeys(event for plan in plans for event in plan.sources))


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
