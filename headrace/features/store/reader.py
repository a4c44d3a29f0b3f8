"""Read a view as a data frame: entities in any of three forms, with features, status and age.

user_id | clicks_10m  recent     | _status  _age_s
7       | 3.0         [12, 5]    | fresh    0.4
8       | 0.0         []         | missing  null
9       | 2.0         [31]       | ahead    0.0       its newest event is not before the time of the read
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.clock import wall_us
from headrace.errors import SpineError
from headrace.features.answer import Answer
from headrace.features.expressions.derived import request_columns
from headrace.features.keys import KeyTexts, key_columns, key_series, keys_of_texts
from headrace.features.view import AGE_S, STATUS, ViewPlan
from headrace.schemas.tables import frame_of
from headrace.schemas.time_units import UNIT_NAMES, likely_unit

FRESH = "fresh"
MISSING = "missing"
AHEAD = "ahead"
NOW_US_MAX = 2**62 - 1
"""Microseconds, 146,000 years. Beyond it, window times would overflow, and NEVER would no longer be before a read."""
_STATUS = pl.Series(STATUS, [MISSING, FRESH, AHEAD])


@dataclass(frozen=True, slots=True)
class ViewRead:
    """Entities of one view to read: ids (n,), their key texts, and the read time in microseconds, one or (n,) int64."""

    plan: ViewPlan
    ids: NDArray[np.int64]
    texts: Sequence[bytes]
    now_us: int | NDArray[np.int64]


def read_frame(
    plan: ViewPlan,
    entities: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any],
    now: datetime | int | str | None,
    answer_of: Callable[..., Answer],
) -> pl.DataFrame:
    """Features of `entities` as of `now`, see `OnlineStore.read`; `answer_of` is called like `OnlineStore.answer`.

    Raises:
        SpineError: an entity column is missing or has another type, or `now` is not a time.
        LayoutError: the view was changed and its new version is not active yet.
        StoreUnavailableError: Redis does not answer.
    """
    given = _frame_of_lists(plan, entities) if isinstance(entities, Mapping) else _frame_or_keys(entities)
    frame = entity_frame(plan, given)
    ids, keys = key_columns(plan, frame)
    request = (
        request_columns(plan.name, plan.layout.request, given)
        if plan.layout.request and isinstance(given, pl.DataFrame)
        else None
    )
    answer = answer_of(plan, ids, KeyTexts(ids, keys), instant_us(now), request, close=True)
    status = _STATUS[answer.found.astype(np.int64) + answer.ahead]
    features = answer.to_polars().get_columns()
    return frame.hstack([*features, status, pl.Series(AGE_S, answer.age_s, nan_to_null=True)])


def entity_frame(plan: ViewPlan, entities: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any]) -> pl.DataFrame:
    """The entity columns of `entities`: a table, a dict of lists, or a list of keys (tuples for a composite entity).

    Raises:
        SpineError: a column is missing, or a key has the wrong number of values or a value of another type.
    """
    entities = entities if isinstance(entities, Mapping) else _frame_or_keys(entities)
    if isinstance(entities, pl.DataFrame):
        frame = entities
    elif isinstance(entities, Mapping):
        frame = _frame_of_lists(plan, entities)
    elif isinstance(entities, str) or not isinstance(entities, Sequence | pl.Series | np.ndarray):
        raise SpineError(
            f"view {plan.name}: entities {entities!r}: give a list of keys, a dict of lists, or a Polars frame with "
            f"{_listed(plan.entity)}"
        )
    elif len(plan.entity) == 1 and not {tuple, list} & set(map(type, entities)):
        frame = pl.DataFrame(_column(plan, 0, entities))
    else:
        rows = [key if isinstance(key, tuple | list) else (key,) for key in entities]
        if any(len(row) != len(plan.entity) for row in rows):
            raise SpineError(
                f"view {plan.name}: each key needs {len(plan.entity)} value(s), for {_listed(plan.entity)}; "
                "give a composite key as a tuple"
            )
        frame = pl.DataFrame([key_series(plan, i, [row[i] for row in rows]) for i in range(len(plan.entity))])
    lacking = [name for name in plan.entity if name not in frame.columns]
    if lacking:
        raise SpineError(
            f"view {plan.name}: the entities lack {_listed(lacking)}; "
            f"there are {_listed(frame.columns) or 'no columns'}. "
            f"Rename the column that holds the key: frame.rename({{'...': '{lacking[0]}'}})"
        )
    return pl.DataFrame([frame[name] for name in plan.entity])


def _frame_or_keys(entities: Any) -> Any:
    """Convert a table of any library, or a list of dicts, to a frame; a list of keys is returned unchanged."""
    frame = None if isinstance(entities, pl.DataFrame) else frame_of(entities)
    return entities if frame is None else frame.lazy().collect()


def _column(plan: ViewPlan, index: int, values: Sequence[Any] | pl.Series | NDArray[Any]) -> pl.Series:
    """Values of key column `index` as a series; series and arrays keep their type, which is checked when read."""
    if isinstance(values, pl.Series | np.ndarray):
        return pl.Series(plan.entity[index], values)
    return key_series(plan, index, values)


def _frame_of_lists(plan: ViewPlan, lists: Mapping[str, Sequence[Any]]) -> pl.DataFrame:
    columns = {
        name: _column(plan, plan.entity.index(name), values)
        if name in plan.entity and isinstance(values, Sequence) and not isinstance(values, str)
        else values
        for name, values in lists.items()
    }
    try:
        return pl.DataFrame(columns)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as exc:
        raise SpineError(f"view {plan.name}: the entities' lists make no frame: {exc}") from exc


def frame_of_texts(plan: ViewPlan, keys: Sequence[str], request: Sequence[str] = ()) -> pl.DataFrame:
    """Parse keys typed on a command line, and request fields "name=value", which apply to every key.

    A composite key is its values joined by commas, or a JSON array if a value contains a comma: '["a,b", 3]'.

    Raises:
        SpineError: a key has the wrong number of values, or is not an integer where the view declares one; a field is
            not declared, has another type, or is missing while others are given.
    """
    columns = keys_of_texts(plan, [_parts(plan, key) for key in keys])
    fields = [field.new_from_index(0, len(keys)) for field in _request_fields(plan, request)]
    return pl.DataFrame([*columns, *fields])


def _parts(plan: ViewPlan, key: str) -> list[str]:
    """The values of a key, as texts."""
    if len(plan.entity) == 1:
        return [key]
    parts: list[Any] = key.split(",")
    if key.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # a plain value may also begin with a bracket
            parts = [part if isinstance(part, str) else json.dumps(part) for part in json.loads(key)]
    if len(parts) != len(plan.entity):
        example = json.dumps([f"<{name}>" for name in plan.entity])
        raise SpineError(
            f"view {plan.name}: key {key!r}: write {','.join(plan.entity)}, or {example} where a value holds a comma"
        )
    return parts


def _request_fields(plan: ViewPlan, words: Sequence[str]) -> list[pl.Series]:
    """Fields of the request, one value each: all that the view declares, or none without words."""
    known, fields = plan.layout.request, dict[str, pl.Series]()
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known or name in fields:
            raise SpineError(
                f"view {plan.name}: request {word!r}: write name=value, once each of {_listed(list(known)) or '(none)'}"
            )
        fields[name] = _parsed(pl.Series(name, [text]), known[name], f"view {plan.name}: request field {name}")
    lacking = [name for name in known if name not in fields]
    if fields and lacking:
        raise SpineError(f"view {plan.name}: request field {lacking[0]} is missing; write {lacking[0]}=value too")
    return list(fields.values())


def _parsed(texts: pl.Series, dtype: pl.DataType, what: str) -> pl.Series:
    """Parse texts as values of a type."""
    if dtype == pl.Boolean:
        values = texts.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    elif isinstance(dtype, pl.Datetime):
        values = pl.Series(texts.name, [instant_us(text) for text in texts]).cast(dtype)
    else:
        values = texts.cast(dtype, strict=False)
    if values.null_count():
        bad = texts[int(values.is_null().arg_max() or 0)]
        raise SpineError(f"{what} {bad!r} is no {dtype}" + "; write true or false" * (dtype == pl.Boolean))
    return values


def instant_us(now: datetime | int | str | None) -> int:
    """Convert `now` to microseconds UTC. None is the wall clock, a text is ISO 8601, a time without a zone is in UTC.

    Raises:
        SpineError: `now` is not a time, or is a number whose size suggests another unit.

    >>> instant_us(datetime(1970, 1, 1, 0, 0, 1)), instant_us(5), instant_us("1970-01-01T00:00:01")
    (1000000, 5, 1000000)
    """
    if now is None:
        return wall_us()
    if isinstance(now, str):
        try:
            now = datetime.fromisoformat(now)
        except ValueError as exc:
            raise SpineError(f"now={now!r} is no time; write ISO 8601, as 2011-10-01T12:00:00") from exc
    if isinstance(now, datetime):
        aware = now if now.tzinfo else now.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(now, bool) or not isinstance(now, int | np.integer) or not -NOW_US_MAX <= now <= NOW_US_MAX:
        raise SpineError(f"now={now!r} ({type(now).__name__}) is no time; give a datetime, or int microseconds UTC")
    if (likely := likely_unit(int(now)) or "us") != "us":
        raise SpineError(f"now={now!r} looks like {UNIT_NAMES[likely]}; give a datetime, or int microseconds UTC")
    return int(now)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
