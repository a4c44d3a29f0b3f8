"""Check the arguments of a declaration against the signature of its class: names and types.

class UserActivity(FeatureView, source=Engagement, entity="user_id"):
    recent = LastN("item_id")        class UserActivity · feature recent: LastN: argument n is missing; write ...
"""

import difflib
import functools
import inspect
import linecache
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin

import polars as pl

from headrace.errors import DeclarationError
from headrace.schemas import Event

Value: TypeAlias = pl.Expr | str
"""A column's name, or an expression over columns."""
Source: TypeAlias = type[Event] | Sequence[type[Event]] | None
Windows: TypeAlias = str | Sequence[str]

_ACCEPTED: list[tuple[Any, str]] = [
    (Source, "an event class of the view, or a tuple of them"),
    (Windows, '"1h", ("1h", "24h") or "lifetime"'),
    (Value, 'a column\'s name or an expression, such as col("x") > 1'),
    (bool, "True or False"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
]
_ACCEPTED_BY_NAME = {
    "hop": 'a span such as "10m"',
    "within": 'a span such as "30d"',
    "half_life": 'a span such as "1h"',
    "prior": "two numbers, as (1, 20)",
    "hidden": "whole numbers, as (64, 32)",
    "losses": "losses, as (LogLoss(), SquaredError())",
    "rank_by": "finite numbers, as (1, 0.2)",
    "columns": 'names of columns, as ("price",)',
    "function": "a function of the columns",
    "q": "quantiles from 0 to 1, as (0.5, 0.9)",
}

_EXAMPLES = {
    "value": '"column"',
    "values": '"column"',
    "n": "10",
    "k": "3",
    "dim": "64",
    "half_life": '"1h"',
    "part": '"clicks"',
    "whole": '"views"',
    "name": '"item"',
    "candidate": '"item_id"',
    "column": '"user_activity.recent"',
    "function": "some_function",
    "columns": '("user_activity.clicks_1h",)',
    "event": "SomeEvent",
    "within": '"10m"',
}
"""Argument values in the examples of error messages."""

T = TypeVar("T", bound=type)


def declared(cls: T) -> T:
    """Class decorator: a constructor called with wrong arguments raises a `DeclarationError` with an example.

    If called in a class body, the error names that class and the attribute assigned on the calling line.
    """
    init, signature = cls.__init__, inspect.signature(cls)  # type: ignore[misc]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise DeclarationError(
                f"{_place(sys._getframe(1))}{cls.__name__}: {_wrong(exc, kwargs, signature)}; "  # noqa: SLF001
                f"write for example {_example(cls.__name__, signature)}"
            ) from None
        init(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def checked(cls: T) -> T:
    """Class decorator: `declared`, and each argument is checked against its annotation before the object is made.

    Numbers must be finite. A whole float, such as 86_400e6, is taken for an int.
    """
    init, signature = cls.__init__, inspect.signature(cls)  # type: ignore[misc]

    @functools.wraps(init)
    def typed(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        for name, value in list(bound.arguments.items()):
            annotation, plain = _parameters(cls)[name].annotation, value.item() if hasattr(value, "dtype") else value
            if isinstance(plain, float) and plain.is_integer() and not _fits(plain, annotation):
                bound.arguments[name] = plain = int(plain)
            if not _fits(plain, annotation) or not _is_finite(plain):
                kind = type(value).__name__ if _is_finite(plain) else "not finite"
                raise DeclarationError(
                    f"{cls.__name__}: {name}={value!r} is {kind}; write {_accepted(name, annotation)}"
                )
        init(self, *bound.args, **bound.kwargs)

    cls.__init__ = typed  # type: ignore[misc]
    return declared(cls)


def _is_finite(value: Any) -> bool:
    """Whether a number, or each number of a tuple, is finite; True for anything else."""
    numbers = value if isinstance(value, tuple | list) else (value,)
    return all(math.isfinite(number) for number in numbers if isinstance(number, float))


def _place(frame: types.FrameType) -> str:
    """`class X · feature y: ` for the current line of a frame; "" if the frame is not a class body."""
    owner = frame.f_locals.get("__qualname__")
    if owner is None:
        return ""
    name = re.match(r"\s*(\w+)\s*=[^=]", linecache.getline(frame.f_code.co_filename, frame.f_lineno))
    return f"class {owner} · feature {name[1]}: " if name else f"class {owner}: "


def _wrong(exc: TypeError, given: Iterable[str], signature: inspect.Signature) -> str:
    """Describe the error of `Signature.bind`: an unknown argument with the closest name, else a missing one."""
    unknown = [name for name in given if name not in signature.parameters]
    missing = re.search(r"missing a required (?:keyword-only )?argument: '(\w+)'", str(exc))
    if unknown:
        near = difflib.get_close_matches(unknown[0], signature.parameters, 1)
        hint = f"did you mean {near[0]}=?" if near else f"there are {', '.join(signature.parameters)}"
        return f"no argument {unknown[0]}=, {hint}"
    return f"argument {missing[1]} is missing" if missing else str(exc)


def _example(name: str, signature: inspect.Signature) -> str:
    """A call with all required arguments."""
    words = []
    for parameter in sorted(signature.parameters.values(), key=lambda parameter: parameter.name == "windows"):
        value = _EXAMPLES.get(parameter.name, "...")
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            words.append(f"{parameter.name}={value}")
        elif parameter.kind == parameter.VAR_POSITIONAL or parameter.default is parameter.empty:
            words.append(value)
        elif parameter.name == "windows" and not parameter.default and parameter.default is not None:
            words.append('windows="1h"')
    return f"{name}({', '.join(words)})"


def check_arguments(path: str, aggregation: object) -> None:
    """Check each argument against its annotation in the signature; `path` locates it in error messages.

    Raises:
        DeclarationError: an argument does not match; the message says what was given and what to write.
    """
    kind: Any = type(aggregation)
    for parameter in _parameters(kind).values():
        if parameter.annotation is parameter.empty or not hasattr(aggregation, parameter.name):
            continue
        given = getattr(aggregation, parameter.name)
        values = given if parameter.kind == parameter.VAR_POSITIONAL else (given,)
        for value in values:
            if not _fits(value, parameter.annotation):
                raise DeclarationError(
                    f"{path}: {parameter.name}={value!r} is {type(value).__name__}; write "
                    f"{_accepted(parameter.name, parameter.annotation)}"
                )


@lru_cache(maxsize=1_000)
def _parameters(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a constructor with evaluated annotations; empty if they cannot be evaluated."""
    try:
        return inspect.signature(kind, eval_str=True).parameters
    except (NameError, TypeError, ValueError):
        return {}


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        fits = any(_fits(value, each) for each in arguments)
    elif origin is type:
        fits = isinstance(value, type) and issubclass(value, arguments[0])
    elif origin in (tuple, Sequence):  # a str is a sequence of str, but never meant as one
        fits = _fits_each(value, tuple | list if origin is tuple else Sequence, arguments)
    elif origin is Callable:
        fits = callable(value)
    elif annotation in (int, float):
        fits = not isinstance(value, bool) and isinstance(value, int if annotation is int else int | float)
    else:  # None arrives as NoneType; objects of a protocol are checked where they are used
        is_kind = isinstance(annotation, type) and not getattr(annotation, "_is_protocol", False)
        fits = not is_kind or isinstance(value, annotation)
    return fits


def _fits_each(value: Any, kind: Any, annotations: Sequence[Any]) -> bool:
    """Whether `value` is a sequence of a kind, and each item fits the annotation at its place, or the only one."""
    if not isinstance(value, kind) or isinstance(value, str):
        return False
    if kind is Sequence or Ellipsis in annotations:
        return all(_fits(item, annotations[0]) for item in value)
    return len(value) == len(annotations) and all(map(_fits, value, annotations))


def _accepted(name: str, annotation: Any) -> str:
    """Describe what the argument accepts. None is not mentioned, since it is always a default."""
    if name in _ACCEPTED_BY_NAME:
        return _ACCEPTED_BY_NAME[name]
    for known, words in _ACCEPTED:
        if annotation in (known, known | None):
            return words
    return str(annotation)
