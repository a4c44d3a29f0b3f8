"""Views: declared features of an entity, and the plan derived from them.

    class UserActivity(FeatureView, source=Engagement, entity="user_id"):
        clicks = Count(where=col("action") == "click", windows=("10m", "1h"))
        recent = LastN("item_id", n=50, distinct=True)

has the features `clicks_10m`, `clicks_1h` and `recent`, with full names such as `user_activity.clicks_10m`. A view is
checked when Python creates the class; docs/views.md shows how to write a view.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from headrace.errors import DeclarationError
from headrace.features.aggregations.aggregation import Aggregation
from headrace.features.plan import AGE_S, STATUS, Declaration, ViewPlan, events_of, make_plan, path_of, version_of
from headrace.schemas import Event
from headrace.schemas.event import refuse_unknown

__all__ = ["AGE_S", "STATUS", "FeatureView", "ViewPlan", "events_of", "is_base", "plan_of", "plans_of", "version_of"]

_CLASS_ARGUMENTS = ("source", "entity", "dedupe", "ttl", "request", "name")


class _Body(dict[str, Any]):
    """Namespace of a view's class body, which raises if a feature is assigned twice."""

    def __init__(self, class_name: str, view: str | None) -> None:
        super().__init__()
        self._class_name, self._view = class_name, view

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self and (_is_feature(self[name]) or _is_feature(value)):
            view = self._view or _snake_case(self._class_name)
            raise DeclarationError(f"view {view} · feature {name}: written twice in one class; rename one of them")
        super().__setitem__(name, value)


class _ViewType(type):
    """Metaclass of views. It rejects a feature assigned twice, where an ordinary class would silently keep the last."""

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body(name, kwargs.get("name"))


class FeatureView(metaclass=_ViewType):
    """Base of every view.

    Class arguments:
        source: event class, or tuple of classes, that the view reads. Without it the class is a base for other views.
        entity: column, or tuple of columns, that all sources have. Each of its values has one record.
        dedupe: span ("10m") in which a repeated event is ignored; None counts every delivery as an event.
            The events need an `id`. An event is identified by its class, id and time, and is remembered as long as its
            time is less than the span before its entity's newest event. At most the newest 65,536 events of an entity
            are remembered; a duplicate of an older event is counted again. Each event of the span adds 8 to 13 bytes
            to every write of the record.
        ttl: span ("30d") after which the store deletes a record without new events; None keeps it. It cannot be
            shorter than a window plus its hop, so windowed values lose no events. State without a time limit (lifetime
            windows, lists, decayed sums) restarts from empty with the entity's next event, whereas a replay ignores
            the ttl.
        request: fields that a read passes in, {"price": float}; see features/expressions/derived.py.
        name: name of the view, of lower-case letters, digits and _. By default the class name in snake case.

    A subclass inherits the features of its bases. Assigning an attribute again replaces it, assigning None removes it.

    Raises:
        DeclarationError: the declaration is wrong; the message names view, feature and what to write.
    """

    _plan: ClassVar[ViewPlan | None] = None

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
        aggregations, expressions = _features(cls, view)
        cls._plan = make_plan(
            Declaration(
                name=view,
                sources=sources,
                entity=keys,
                dedupe=dedupe,
                ttl=ttl,
                request=request or {},
                aggregations=aggregations,
                expressions=expressions,
                declared_in=path_of(cls),
            )
        )


def plan_of(view: type[FeatureView]) -> ViewPlan:
    """The plan of a view, computed once when its class is created.

    Raises:
        DeclarationError: `view` is not a view, or is a base class without a source.
    """
    if not (isinstance(view, type) and issubclass(view, FeatureView)):
        written = f"class {view.__module__}:{view.__qualname__}" if isinstance(view, type) else repr(view)
        raise DeclarationError(
            f"{written} is no view; name a class declared as `class SomeView(FeatureView, source=..., entity=...)`"
        )
    if view._plan is None:  # noqa: SLF001
        raise DeclarationError(f"view {view.__name__}: no source; add source=SomeEvent to the class arguments")
    return view._plan  # noqa: SLF001


def is_base(view: type[FeatureView]) -> bool:
    """Whether a view has no source, and is therefore a base class without a plan."""
    return view._plan is None  # noqa: SLF001


def plans_of(views: Iterable[type[FeatureView]], role: str) -> list[ViewPlan]:
    """The plans of views that are used together; `role` names their user in error messages ("replay").

    Raises:
        DeclarationError: as `plan_of`; or there are no views, a view is given twice, or two views share a name.
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


def _features(view: type[FeatureView], name: str) -> tuple[dict[str, Aggregation], dict[str, pl.Expr]]:
    """The attributes that are aggregations, and those that are expressions over features."""
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
    aggregations = {attribute: value for attribute, value in declared.items() if attribute not in expressions}
    if not aggregations:
        raise DeclarationError(f'view {name}: no features; write for example: events = Count(windows=("1h", "24h"))')
    return aggregations, expressions


def _refuse_lost(name: str, base: type) -> None:
    """Raise for features in a form that would be ignored: annotations, uncalled classes, collections."""
    for attribute, annotation in vars(base).get("__annotations__", {}).items():
        if _is_feature(annotation) and not isinstance(annotation, type):
            raise DeclarationError(
                f"view {name} · feature {attribute}: write {attribute} = ... instead of {attribute}: ..."
            )
    for attribute, value in vars(base).items():
        path = f"view {name} · feature {attribute}"
        if _is_feature(value) and isinstance(value, type):
            raise DeclarationError(f"{path}: {value.__name__} is a class; call it")
        items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list | set) else ()
        if attribute != "__annotations__" and any(_is_feature(item) for item in items):
            raise DeclarationError(f"{path}: a {type(value).__name__}; write one feature, with no comma behind it")


def _is_feature(value: Any) -> bool:
    """Whether an attribute is a feature, or an aggregation class that was not called."""
    if isinstance(value, type):
        return issubclass(value, Aggregation)
    return isinstance(value, pl.Expr | Aggregation)


def _require_plain(view: object) -> None:
    if not isinstance(view, str) or not re.fullmatch("[a-z0-9_]+", view):
        raise DeclarationError(
            f"view {view}: a view's name is part of the store's keys; give it one of lower-case letters, digits and "
            '_, as name="some_view"'
        )


def _several(what: str, given: Any, kind: type, example: str) -> tuple[Any, ...]:
    """Normalise None, one object of `kind`, or a tuple or list of them to a tuple."""
    items = () if given is None else (given,) if isinstance(given, str | type) else given
    if not isinstance(items, tuple | list) or not all(isinstance(item, kind) for item in items):
        raise DeclarationError(f"{what}={given!r}; write {example} or a tuple of such")
    return tuple(items)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
