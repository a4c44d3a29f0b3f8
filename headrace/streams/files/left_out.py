"""Rows of a history that are not replayed: each is counted and logged.

A replay writes no dead letters, since the live flow has already written them for the same rows.
"""

import prometheus_client

from headrace.schemas.paced_log import PacedLog

LEFT_OUT = prometheus_client.Counter(
    "headrace_replay_rows_left_out_total", "Rows of a history that a replay could not use.", ["event", "reason"]
)

_log = PacedLog("bad_rows_left_out", "rows")


def leave_out(event: str, place: str, rows: int, reason: str, detail: str) -> None:
    """Count and log rows of an event that are left out; `detail` describes the first row."""
    LEFT_OUT.labels(event=event, reason=reason).inc(rows)
    _log.add(rows, detail, log=place, reason=reason)
