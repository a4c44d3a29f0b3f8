"""Reading a view as a frame: entities in any of three forms, values, status and age.

user_id | clicks_10m  recent     | _status  _age_s
7       | 3.0         [12, 5]    | fresh    0.4
8       | 0.0         []         | missing  null
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from headrace.clock import wall_us
from headrace.errors import SpineError
from headrace.features.expressions import request_columns
from headrace.features.keys import entity_ids
from headrace.features.view import AGE_S, STATUS, FeatureView, ViewPlan, plan_of
from headrace.schemas import spec_of

if TYPE_CHECKING:
    from headrace.features.store import OnlineStore

FRESH = "fresh"
MISSING = "missing"
_STATUS = pl.Series(STATUS, [MISSING, FRESH])


def read_frame(
    store: "OnlineStore",
    view: type[FeatureView],
    entities: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any],
    now: datetime | int | None = None,
) -> pl.DataFrame:
    """Feature values of `entities` as of `now`; `OnlineStore.read` says more.

    Raises:
        SpineError: an entity column is missing or of another type.
        LayoutError: the view was changed and its new version is not active yet.
        StoreUnavailableError: Redis does not answer.
    """
    plan = plan_of(view)
    given = pl.DataFrame(dict(entities)) if isinstance(entities, Mapping) else entities
    frame = entity_frame(plan, given)
    ids, texts = entity_ids(plan, frame)
    request = (
        request_columns(plan.name, plan.layout.request, given)
        if plan.layout.request and isinstance(given, pl.DataFrame)
        else None
    )
    answer = store.answer(plan, ids, texts, instant_us(now), request)
    age_s = np.where(answer.found, answer.age_us / 1e6, np.nan)
    status = _STATUS[answer.found.astype(np.int64)]
    features = answer.to_polars().get_columns()
    return frame.hstack([*features, status, pl.Series(AGE_S, age_s, nan_to_null=True)])


def entity_frame(plan: ViewPlan, entities: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any]) -> pl.DataFrame:
    """The entity columns of `entities`: a frame, a dict of lists, or a list of keys (tuples for a composite entity).

    Raises:
        SpineError: a column is missing, or a key has not as many values as there are columns.
    """
    if isinstance(entities, pl.DataFrame):
        frame = entities
    elif isinstance(entities, Mapping):
        frame = pl.DataFrame(dict(entities))
    elif len(plan.entity) == 1 and not {tuple, list} & set(map(type, entities)):
        frame = pl.DataFrame({plan.entity[0]: entities}, strict=False)
    else:
        rows = [key if isinstance(key, tuple | list) else (key,) for key in entities]
        if any(len(row) != len(plan.entity) for row in rows):
            raise SpineError(
                f"view {plan.name}: each key needs {len(plan.entity)} value(s), for {_listed(plan.entity)}; "
                "give a composite key as a tuple"
            )
        frame = pl.DataFrame({name: [row[i] for row in rows] for i, name in enumerate(plan.entity)}, strict=False)
    lacking = [name for name in plan.entity if name not in frame.columns]
    if lacking:
        raise SpineError(
            f"view {plan.name}: the entities lack {_listed(lacking)}; "
            f"there are {_listed(frame.columns) or 'no columns'}. "
            f"Rename the column that holds the key: frame.rename({{'...': '{lacking[0]}'}})"
        )
    return pl.DataFrame([frame[name] for name in plan.entity])


def frame_of_texts(plan: ViewPlan, keys: Sequence[str]) -> pl.DataFrame:
    """Keys as typed on a command line; a composite key is its values joined by commas.

    Raises:
        SpineError: a key has another number of values than the entity has columns, or is no integer where it must be.
    """
    rows = [key.split(",") if len(plan.entity) > 1 else [key] for key in keys]
    wrong = next((key for key, row in zip(keys, rows, strict=True) if len(row) != len(plan.entity)), None)
    if wrong is not None:
        raise SpineError(f"view {plan.name}: key {wrong!r}: write {','.join(plan.entity)}")
    schema = spec_of(plan.sources[0]).polars
    columns = []
    for index, name in enumerate(plan.entity):
        column = pl.Series(name, [row[index] for row in rows], dtype=pl.String).cast(schema[name], strict=False)
        if column.null_count():
            bad = rows[int(column.is_null().arg_max() or 0)][index]
            raise SpineError(f"view {plan.name}: {name} {bad!r} is no {schema[name]}")
        columns.append(column)
    return pl.DataFrame(columns)


def instant_us(now: datetime | int | None) -> int:
    """`now` in microseconds UTC: None is the wall clock, a naive datetime is taken as UTC.

    >>> instant_us(datetime(1970, 1, 1, 0, 0, 1)), instant_us(5)
    (1000000, 5)
    """
    if now is None:
        return wall_us()
    if isinstance(now, datetime):
        aware = now if now.tzinfo else now.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return now


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
