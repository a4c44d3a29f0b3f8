"""Join engagements to the requests that showed their candidates, as labels.

One request is one event with a list of candidates. A candidate is positive when an engagement of the same entity with
it happened in [t, t + within), t being the request's event time; an engagement may label several requests.

    watermark ------------------------------------------------------------------> event time
    request t   |<---------- within ---------->|
    engagements     x (first match)   x        |
                                               '-- emitted once the watermark has passed, in steps of within / 16

Law: the requests that come out, their order (event time, then request id) and their labels are a function of the set of
events, not of their order, batching or duplication, as long as nothing is later than the watermark's lateness.

Not optimal: each step scans the engagements of one window.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from prometheus_client import Counter

from headrace.errors import ConfigError, SourceError
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.pipelines.joining.labels import label_requests
from headrace.pipelines.joining.open_requests import OpenRequests
from headrace.pipelines.joining.spec import JoinSpec, micros
from headrace.schemas import spec_of
from headrace.streams.intake import newest_us
from headrace.streams.source import EventBatch
from headrace.streams.watermark import END_OF_TIME_US

REQUESTS_MAX = 1_000_000
"""Open requests in memory; more are spilled to disk."""
ENGAGEMENTS_MAX = 20_000_000
"""Positive engagements in memory."""
PRUNE_ROWS = 65_536
"""Engagements beside which it is not worth looking for those that nothing can match any more."""
MARKS = (LABEL, IS_POSITIVE)
LONG_AGO_US = -(2**62)

JOINED = Counter("headrace_joiner_rows_total", "Rows that the joiner took in or gave out", ["outcome"])


class Offsets:
    """Next offset of each partition whose rows were taken in, so that none is taken in twice."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}

    def positions(self) -> dict[str, int]:
        """Next offset of every partition seen. Rows below it are not taken twice."""
        return dict(self._positions)

    def new_rows(self, batch: EventBatch) -> EventBatch:
        """The rows of a batch, of any event, that come for the first time; its partition's offset moves past them."""
        offset = self._positions.get(batch.partition, 0)
        self._positions[batch.partition] = max(offset, batch.next_offset)
        return batch.since(offset)

    def skip_to(self, positions: Mapping[str, int]) -> None:
        """Take rows before `positions` (partition -> next offset) as seen."""
        for partition, offset in positions.items():
            self._positions[partition] = max(self._positions.get(partition, 0), offset)


class Joiner(Offsets):
    """Open requests and engagements of one `JoinSpec`, in memory; requests beyond `requests_max` on disk in `spill`.

    `counts` tells what became of the rows. State survives a restart by `save` and `load`, offsets with it.
    """

    def __init__(
        self,
        spec: JoinSpec,
        *,
        requests_max: int = REQUESTS_MAX,
        engagements_max: int = ENGAGEMENTS_MAX,
        spill: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.counts: dict[str, int] = {}
        self._request = spec_of(spec.request)
        self._engagement = spec_of(spec.engagement)
        self._engagements_max = engagements_max
        folder = None if spill is None else Path(spill)
        self._open = OpenRequests(self._request, spec.step_us, rows_max=requests_max, spill=folder)
        self._engagements: list[pl.DataFrame] = []
        self._engagements_left = 0  # after they were last pruned
        self._watermark_us = LONG_AGO_US
        self._newest_us = LONG_AGO_US

    @property
    def open_requests(self) -> int:
        """Requests whose window is open, in memory or in files."""
        return self._open.rows

    @property
    def requests_in_memory(self) -> int:
        """Open requests that are in memory."""
        return self._open.rows_in_memory

    def keep_in(self, folder: Path) -> None:
        """Keep open requests in files of a folder that outlives the process, so that saving is short.

        Called before the first request or `load`; a saved state then needs this folder as well.
        """
        self._open.keep_in(folder)

    def add(self, batch: EventBatch) -> None:
        """Take in the new rows of a batch of either event.

        Raises:
            SourceError: it is of neither.
        """
        self.add_new(self.new_rows(batch))

    def add_new(self, batch: EventBatch) -> None:
        """Take in what `new_rows` returned, if it is of either event.

        Raises:
            SourceError: it is of neither.
        """
        if batch.event is self.spec.request:
            self._add_requests(batch)
        elif batch.event is self.spec.engagement:
            self._add_engagements(batch)
        else:
            names = f"{self._request.name} or {self._engagement.name}"
            raise SourceError(f"{batch.partition}: the joiner takes {names}, not {batch.event.__name__}")

    def _add_requests(self, batch: EventBatch) -> None:
        """Take in requests. One older than the watermark is late: counted and dropped."""
        frame = self._with_append_times(batch)
        on_time = frame.filter(micros(self._request.time) >= self._watermark_us)
        self._count("late_requests", frame.height - on_time.height)
        if on_time.is_empty():
            return
        self._count("spilled_requests", self._open.add(on_time))

    def _add_engagements(self, batch: EventBatch) -> None:
        """Take in engagements. One that no open or coming request can match is late: counted and dropped.

        So is one that an expression of its label has no value for, counted as "failed_engagements".

        Raises:
            ConfigError: there are more than `engagements_max`.
        """
        frame = self._with_append_times(batch)
        labelled, failed = labelled_events(frame, self.spec)
        self._count("failed_engagements", failed)
        columns = [*self.spec.engagement_entity, self.spec.candidate, self._engagement.id, "appended_us", *MARKS]
        useful = labelled.select(*columns, micros(self._engagement.time).alias("__time")).filter(
            pl.col("__time") >= self._floor_us(),
        )
        self._count("late_engagements", labelled.height - useful.height)
        if not useful.is_empty():
            self._engagements.append(useful)
        waiting = sum(frame.height for frame in self._engagements)
        if waiting > self._engagements_max:
            raise ConfigError(
                f"joiner: {waiting} engagements wait, limit engagements_max="
                f"{self._engagements_max}: raise it, or shorten within"
            )

    def advance(self, watermark_us: int) -> pl.DataFrame | None:
        """Requests whose label window the watermark has passed, in order; None when there are none.

        At `END_OF_TIME_US` all of them are due.

        Returns:
            (n_requests,): the request's columns, then `labels` List(Int8) with one 0 or 1 a candidate, `label_times`
            List(Datetime), `label_ids` and `label_appended_us` List(Int64) of each candidate's first match (null where
            there is none), `appended_us` of the request. Labels are Float32 if the spec has a `value`, and null where
            they are unknown. A positive match comes before a negative one.
        """
        ended = watermark_us >= END_OF_TIME_US
        # An end is not for ever: a later run over more of the stream goes on after the newest event.
        self._watermark_us = max(self._watermark_us, self._newest_us if ended else watermark_us)
        due_before = (self._watermark_us - self.spec.within_us) // self.spec.step_us
        due = self._open.due(None if ended else due_before)
        if not due:
            self._forget_engagements()
            return None
        requests = self._take(due)
        engagements = self._dense_engagements()
        labelled = label_requests(requests, engagements, self.spec)
        floor_us = self._floor_us()
        self._engagements = [engagements.filter(pl.col("__time") >= floor_us)]
        self._count_labels(labelled)
        return labelled

    def _forget_engagements(self) -> None:
        """Drop engagements that nothing can match any more, once as many again wait as did after the last time."""
        waiting = sum(frame.height for frame in self._engagements)
        if waiting > 2 * self._engagements_left + PRUNE_ROWS:
            self._engagements = [pl.concat(self._engagements).filter(pl.col("__time") >= self._floor_us())]
            self._engagements_left = self._engagements[0].height

    def save(self, folder: str | Path) -> None:
        """Write the whole state, offsets with it, into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        files = self._open.save(target)
        self._engagements = [pl.concat([self._no_engagements(), *self._engagements])]
        self._engagements[0].write_ipc(target / "engagements.arrow")
        state = {
            **files,
            "watermark_us": self._watermark_us,
            "newest_us": self._newest_us,
            "positions": self._positions,
        }
        everything = {**state, "counts": self.counts, "spec": self._fingerprint()}
        (target / "joiner.json").write_bytes(orjson.dumps(everything))

    def load(self, folder: str | Path) -> None:
        """Take over the state that `save` wrote.

        Raises:
            ConfigError: it was written by a joiner of another spec.
            SnapshotError: a file of open requests is missing or damaged.
        """
        source = Path(folder)
        state: dict[str, Any] = orjson.loads((source / "joiner.json").read_bytes())
        if state["spec"] != self._fingerprint():
            raise ConfigError(f"joiner state in {source} belongs to {state['spec']}, not to {self._fingerprint()}")
        self._watermark_us, self._newest_us = state["watermark_us"], state["newest_us"]
        self._positions, self.counts = state["positions"], state["counts"]
        self._open.load(source, state)
        engagements = pl.read_ipc(source / "engagements.arrow")
        if LABEL not in engagements.columns:  # of an earlier release: all were positive
            engagements = engagements.with_columns(
                pl.lit(1.0, pl.Float32).alias(LABEL), pl.lit(value=True).alias(IS_POSITIVE)
            )
        self._engagements = [engagements.select(self._no_engagements().columns)]

    def _with_append_times(self, batch: EventBatch) -> pl.DataFrame:
        newest = newest_us(batch)
        self._newest_us = self._newest_us if newest is None else max(self._newest_us, newest)
        return batch.frame.with_columns(
            pl.Series("appended_us", batch.appended_us, dtype=pl.Int64)
            if batch.appended_us is not None
            else pl.lit(None, pl.Int64).alias("appended_us")
        )

    def _take(self, numbers: list[int]) -> pl.DataFrame:
        """Requests of some slices, in order, each id once."""
        request_id = str(self.spec.request_id)
        rows = self._open.take(numbers).sort(self._request.time, request_id, maintain_order=True)
        once = rows.unique(request_id, keep="first", maintain_order=True)
        self._count("duplicate_requests", rows.height - once.height)
        return once

    def _dense_engagements(self) -> pl.DataFrame:
        """All engagements as one frame, each id once."""
        rows = pl.concat([self._no_engagements(), *self._engagements])
        engagement_id = str(self._engagement.id)
        once = rows.sort("__time", engagement_id).unique(engagement_id, keep="first", maintain_order=True)
        self._count("duplicate_engagements", rows.height - once.height)
        self._engagements = [once]
        return once

    def _floor_us(self) -> int:
        """Engagements before it match neither an open request nor one that may still come."""
        first = self._open.first()
        return self._watermark_us if first is None else min(first * self.spec.step_us, self._watermark_us)

    def _count_labels(self, labelled: pl.DataFrame) -> None:
        """Requests that came out, and how many of them no engagement labelled."""
        self._count("requests", labelled.height)
        self._count("unjoined_requests", labelled.filter(pl.col("label_ids").list.drop_nulls().list.len() == 0).height)

    def _count(self, outcome: str, rows: int) -> None:
        if rows:
            self.counts[outcome] = self.counts.get(outcome, 0) + rows
            JOINED.labels(outcome).inc(rows)

    def _no_engagements(self) -> pl.DataFrame:
        columns = [*self.spec.engagement_entity, self.spec.candidate, str(self._engagement.id)]
        types = {column: self._engagement.polars[column] for column in columns}
        marks = {LABEL: pl.Float32(), IS_POSITIVE: pl.Boolean()}
        return pl.DataFrame(schema={**types, "appended_us": pl.Int64(), **marks, "__time": pl.Int64()})

    def _fingerprint(self) -> Mapping[str, Any]:
        spec = self.spec
        later = {"negative": spec.negative, "value": spec.value}  # named only where given: states of before stay good
        return {
            **{name: str(expression) for name, expression in later.items() if expression is not None},
            "request": self._request.name,
            "engagement": self._engagement.name,
            "columns": [spec.candidates, spec.candidate, *spec.request_entity, *spec.engagement_entity],
            "positive": str(spec.positive),
            "within_us": spec.within_us,
        }
