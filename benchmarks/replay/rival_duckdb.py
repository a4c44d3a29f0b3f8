"""DuckDB, twice: the range join that point-in-time SQL is written as, and window frames over events and rows together.

The join pairs a row with every event of its user in the longest window, once, with a filter an aggregate. The frames
avoid the pairs: events and rows are one relation, and each window is a RANGE frame that DuckDB answers from a segment
tree. Both take the newest items from lists that grow along each user's events, joined as-of.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl

from benchmarks.replay.declaration import HOP_US, NAMES, NEWEST_COUNT, WINDOW_US, WINDOWS


def _start(window: str, time: str) -> str:
    return f"({time} // {HOP_US[window]} * {HOP_US[window]} - {WINDOW_US[window]})"


_TABLES = """
CREATE TEMP TABLE e AS SELECT user_id, epoch_us(event_time) AS t, item_id, amount FROM '{orders}';
CREATE TEMP TABLE s AS SELECT "row", user_id, epoch_us(event_time) AS t FROM '{spine}';
"""
_CALLS = {"orders": "count(amount)", "total": "sum(amount)", "average": "avg(amount)", "largest": "max(amount)"}
_LISTS = f"""
SELECT s."row", l.recent FROM s ASOF LEFT JOIN (
    SELECT user_id, t, list(item_id) OVER (PARTITION BY user_id ORDER BY t ROWS {NEWEST_COUNT - 1} PRECEDING) AS recent
    FROM e
) l ON s.user_id = l.user_id AND l.t < s.t
"""


def join_answer(orders: Path, spine: Path) -> pl.DataFrame:
    """The same frame as ours, by a range join."""
    longest = max(WINDOWS, key=WINDOW_US.__getitem__)
    calls = _columns(lambda window: f"FILTER (e.t >= {_start(window, 's.t')})")
    return _ask(
        orders,
        spine,
        f"""SELECT s."row", {calls} FROM s LEFT JOIN e
            ON e.user_id = s.user_id AND e.t >= {_start(longest, "s.t")} AND e.t < s.t GROUP BY s."row" """,
    )


def frames_answer(orders: Path, spine: Path) -> pl.DataFrame:
    """The same frame as ours, by window frames."""
    calls = _columns("OVER w{}".format)
    frames = [
        f"w{window} AS (PARTITION BY user_id ORDER BY t "
        f"RANGE BETWEEN (t - {_start(window, 't')}) PRECEDING AND 1 PRECEDING)"
        for window in WINDOWS
    ]
    return _ask(
        orders,
        spine,
        f"""SELECT * FROM (
            SELECT "row", {calls} FROM (
                SELECT NULL AS "row", user_id, t, amount FROM e UNION ALL SELECT "row", user_id, t, NULL FROM s
            ) WINDOW {", ".join(frames)}
        ) WHERE "row" IS NOT NULL""",
    )


def _columns(part: Callable[[str], str]) -> str:
    """All 12 columns; `part` says which events of a window a call takes. SQL's sum of nothing is null, ours is 0."""
    calls = {(name, window): f"{_CALLS[name]} {part(window)}" for name in NAMES for window in WINDOWS}
    return ", ".join(
        f"{f'coalesce({call}, 0)' if name == 'total' else call} AS {name}_{window}"
        for (name, window), call in calls.items()
    )


def _ask(orders: Path, spine: Path, values: str) -> pl.DataFrame:
    with duckdb.connect() as base:
        base.execute(_TABLES.format(orders=orders, spine=spine))
        return (
            base.sql(f'SELECT v.*, l.recent FROM ({values}) v JOIN ({_LISTS}) l USING ("row") ORDER BY "row"')
            .pl()
            .with_columns(pl.col("recent").list.reverse().fill_null([]))
        )
