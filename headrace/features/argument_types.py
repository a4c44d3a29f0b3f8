"""Arguments of an aggregation against the types that its own signature declares: one check for all of them."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

from headrace.errors import DeclarationError
from headrace.features.aggregation import Source, Value, Windows

_WANTED: list[tuple[Any, str]] = [
    (Source, "an event class of the view, or a tuple of them"),
    (Windows, '"1h", ("1h", "24h") or "lifetime"'),
    (Value, 'a column\'s name or an expression, such as col("x") > 1'),
    (bool, "True or False"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
]
_WANTED_BY_NAME = {
    "hop": 'a span such as "10m"',
    "within": 'a span such as "30d"',
    "half_life": 'a span such as "1h"',
    "prior": "two numbers, as (1, 20)",
    "q": "quantiles from 0 to 1, as (0.5, 0.9)",
}


def check_arguments(path: str, aggregation: object) -> None:
    """See that each argument is of the type that the aggregation's signature says; `path` is named in errors.

    Raises:
        DeclarationError: one is not; says what was found and what to write.
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
                    f"{_wanted(parameter.name, parameter.annotation)}"
                )


@lru_cache(maxsize=1_000)
def _parameters(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of its constructor, with types as objects; none where they cannot be had."""
    try:
        return inspect.signature(kind, eval_str=True).parameters
    except (NameError, TypeError, ValueError):
        return {}


def _fits(value: Any, wanted: Any) -> bool:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is type:
        return isinstance(value, type) and issubclass(value, arguments[0])
    if origin is tuple and Ellipsis not in arguments:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(arguments)
            and all(_fits(item, each) for item, each in zip(value, arguments, strict=True))
        )
    if origin is Sequence:  # a text is a sequence of texts, and never meant as one
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(x, arguments[0]) for x in value)
    if wanted in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if wanted is int else int | float)
    return not isinstance(wanted, type) or isinstance(value, wanted)  # None is here as its type


def _wanted(name: str, annotation: Any) -> str:
    """In words; None is left out, for it is the default wherever it may be."""
    if name in _WANTED_BY_NAME:
        return _WANTED_BY_NAME[name]
    for known, words in _WANTED:
        if annotation in (known, known | None):
            return words
    return str(annotation)
