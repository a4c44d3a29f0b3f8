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

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import structlog
from prometheus_client import Counter

from headrace.errors import ConfigError, DeclarationError, SourceError
from headrace.features.expressions.failing_rows import rows_where
from headrace.schemas import Event, spec_of
from headrace.streams.intake import newest_us
from headrace.streams.source import EventBatch
from headrace.streams.watermark import END_OF_TIME_US

log = structlog.get_logger(__name__)

STEPS_PER_WINDOW = 16
"""A request waits at most this fraction of `within` longer than it must; fewer scans of the engagements in return."""
OUTPUT = ("labels", "label_times", "label_ids", "label_appended_us", "appended_us")
"""Columns that the joiner adds to those of the request."""
REQUESTS_MAX = 1_000_000
"""Open requests in memory; more are spilled to disk."""
ENGAGEMENTS_MAX = 20_000_000
"""Positive engagements in memory."""
PRUNE_ROWS = 65_536
"""Engagements beside which it is not worth looking for those that nothing can match any more."""
LONG_AGO_US = -(2**62)

JOINED = Counter("headrace_joiner_rows_total", "Rows that the joiner took in or gave out", ["outcome"])


@dataclass(frozen=True, slots=True, eq=False)
class JoinSpec:
    """Which engagements label which requests.

    `candidates` is the list column of `request`, `candidate` the column of `engagement` that names one of them;
    `positive` picks the engagements that count, None: all; `within_us` is the label window. The entity columns default
    to the events' keys and `request_id` to the request's declared id.

    Raises:
        DeclarationError: a column is missing, or two that are compared differ in type.
    """

    request: type[Event]
    engagement: type[Event]
    candidates: str
    candidate: str
    within_us: int
    positive: pl.Expr | None = None
    lateness_us: int = 0
    request_id: str | None = None
    request_entity: tuple[str, ...] = ()
    engagement_entity: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        request, engagement = spec_of(self.request), spec_of(self.engagement)
        object.__setattr__(self, "request_id", self.request_id or request.id)
        object.__setattr__(self, "request_entity", self.request_entity or request.key)
        object.__setattr__(self, "engagement_entity", self.engagement_entity or engagement.key)
        where = f"join of {request.name} with {engagement.name}"
        for spec, columns in (
            (request, (self.request_id, self.candidates, *self.request_entity)),
            (engagement, (engagement.id, self.candidate, *self.engagement_entity)),
        ):
            for column in columns:
                if column not in spec.polars:
                    what = "an id, and it declares none" if column is None else f"column {column!r}"
                    raise DeclarationError(f"{where}: needs {what}; {spec.name} has {', '.join(spec.polars)}")
        taken = [column for column in OUTPUT if column in request.polars]
        if taken:
            raise DeclarationError(f"{where}: {', '.join(taken)} is what the joiner adds; rename it in {request.name}")
        left = [pl.List(engagement.polars[self.candidate]), *(engagement.polars[c] for c in self.engagement_entity)]
        right = [request.polars[c] for c in (self.candidates, *self.request_entity)]
        if left != right:
            raise DeclarationError(f"{where}: {request.name} has {right}, {engagement.name} wants {left}")
        if self.within_us <= 0 or self.lateness_us < 0:
            raise DeclarationError(
                f"{where}: within {self.within_us} us, lateness {self.lateness_us} us: must be positive"
            )

    @property
    def step_us(self) -> int:
        """Requests come out when the watermark passes a multiple of this."""
        return step_us_of(self.within_us)


def step_us_of(within_us: int) -> int:
    """Microseconds of event time of one step: what waits for a window comes out at multiples of it."""
    return max(within_us // STEPS_PER_WINDOW, 1)


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
        self._requests_max = requests_max
        self._engagements_max = engagements_max
        self._spill = None if spill is None else Path(spill)
        self._spill_number = itertools.count()
        self._slices: dict[int, list[pl.DataFrame | Path]] = {}  # event time // step -> requests
        self._in_memory = 0
        self._engagements: list[pl.DataFrame] = []
        self._engagements_left = 0  # after they were last pruned
        self._watermark_us = LONG_AGO_US
        self._newest_us = LONG_AGO_US

    @property
    def open_requests(self) -> int:
        """Requests waiting in memory, without spilled ones."""
        return self._in_memory

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
        on_time = frame.filter(_us(self._request.time) >= self._watermark_us)
        self._count("late_requests", frame.height - on_time.height)
        if on_time.is_empty():
            return
        slices = on_time.with_columns((_us(self._request.time) // self.spec.step_us).alias("__slice"))
        for (number,), part in slices.partition_by("__slice", as_dict=True, include_key=False).items():
            self._slices.setdefault(int(number), []).append(part)
        self._in_memory += on_time.height
        if self._in_memory > self._requests_max:
            self._spill_latest()

    def _add_engagements(self, batch: EventBatch) -> None:
        """Take in engagements. One that no open or coming request can match is late: counted and dropped.

        So is one that `positive` has no value for, counted as "failed_engagements".

        Raises:
            ConfigError: there are more than `engagements_max`.
        """
        frame = self._with_append_times(batch)
        positive, failed = (frame, 0) if self.spec.positive is None else rows_where(frame, self.spec.positive)
        self._count("failed_engagements", failed)
        columns = [*self.spec.engagement_entity, self.spec.candidate, self._engagement.id, "appended_us"]
        useful = positive.select(*columns, _us(self._engagement.time).alias("__time")).filter(
            pl.col("__time") >= self._floor_us(),
        )
        self._count("late_engagements", positive.height - useful.height)
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
            there is none), `appended_us` of the request.
        """
        ended = watermark_us >= END_OF_TIME_US
        # An end is not for ever: a later run over more of the stream goes on after the newest event.
        self._watermark_us = max(self._watermark_us, self._newest_us if ended else watermark_us)
        due_before = (self._watermark_us - self.spec.within_us) // self.spec.step_us
        due = sorted(number for number in self._slices if ended or number < due_before)
        if not due:
            self._forget_engagements()
            return None
        requests = self._take(due)
        engagements = self._dense_engagements()
        labelled = _label(requests, engagements, self.spec)
        floor_us = self._floor_us()
        self._engagements = [engagements.filter(pl.col("__time") >= floor_us)]
        self._count("requests", labelled.height)
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
        waiting = [self._load(part) for parts in self._slices.values() for part in parts]
        pl.concat([self._no_requests(), *waiting]).write_ipc(target / "requests.arrow")
        self._dense_engagements().write_ipc(target / "engagements.arrow")
        state = {"watermark_us": self._watermark_us, "newest_us": self._newest_us, "positions": self._positions}
        everything = {**state, "counts": self.counts, "spec": self._fingerprint()}
        (target / "joiner.json").write_bytes(orjson.dumps(everything))

    def load(self, folder: str | Path) -> None:
        """Take over the state that `save` wrote.

        Raises:
            ConfigError: it was written by a joiner of another spec.
        """
        source = Path(folder)
        state: dict[str, Any] = orjson.loads((source / "joiner.json").read_bytes())
        if state["spec"] != self._fingerprint():
            raise ConfigError(f"joiner state in {source} belongs to {state['spec']}, not to {self._fingerprint()}")
        self._watermark_us, self._newest_us = state["watermark_us"], state["newest_us"]
        self._positions, self.counts = state["positions"], state["counts"]
        requests = pl.read_ipc(source / "requests.arrow")
        slices = requests.with_columns((_us(self._request.time) // self.spec.step_us).alias("__slice"))
        parts = slices.partition_by("__slice", as_dict=True, include_key=False, maintain_order=True)
        self._slices = {int(number): [part] for (number,), part in parts.items()}
        self._in_memory = requests.height
        self._engagements = [pl.read_ipc(source / "engagements.arrow")]

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
        frames = []
        for number in numbers:
            for part in self._slices.pop(number):
                frame = self._load(part)
                frames.append(frame)
                if isinstance(part, Path):
                    part.unlink()
                else:
                    self._in_memory -= frame.height
        request_id = str(self.spec.request_id)
        rows = pl.concat(frames).sort(self._request.time, request_id, maintain_order=True)
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
        return min(min(self._slices, default=2**62) * self.spec.step_us, self._watermark_us)

    def _spill_latest(self) -> None:
        """Write the slices that are due last to disk until memory is half full."""
        if self._spill is None:
            self._spill = Path(tempfile.mkdtemp(prefix="headrace-joiner-"))
            weakref.finalize(self, shutil.rmtree, self._spill, ignore_errors=True)
        self._spill.mkdir(parents=True, exist_ok=True)
        spilled = 0
        for number in sorted(self._slices, reverse=True):
            if self._in_memory <= self._requests_max // 2:
                break
            parts = self._slices[number]
            in_memory = [part for part in parts if isinstance(part, pl.DataFrame)]
            if not in_memory:
                continue
            frame = pl.concat(in_memory)
            path = self._spill / f"{number}-{next(self._spill_number)}-{id(self)}.arrow"
            frame.write_ipc(path)
            self._slices[number] = [*(part for part in parts if isinstance(part, Path)), path]
            self._in_memory -= frame.height
            spilled += frame.height
        self._count("spilled_requests", spilled)
        log.info("joiner_spilled", requests=spilled, folder=str(self._spill))

    def _load(self, part: pl.DataFrame | Path) -> pl.DataFrame:
        return pl.read_ipc(part) if isinstance(part, Path) else part

    def _count(self, outcome: str, rows: int) -> None:
        if rows:
            self.counts[outcome] = self.counts.get(outcome, 0) + rows
            JOINED.labels(outcome).inc(rows)

    def _no_requests(self) -> pl.DataFrame:
        return pl.DataFrame(schema={**self._request.polars, "appended_us": pl.Int64()})

    def _no_engagements(self) -> pl.DataFrame:
        columns = [*self.spec.engagement_entity, self.spec.candidate, str(self._engagement.id)]
        types = {column: self._engagement.polars[column] for column in columns}
        return pl.DataFrame(schema={**types, "appended_us": pl.Int64(), "__time": pl.Int64()})

    def _fingerprint(self) -> Mapping[str, Any]:
        spec = self.spec
        return {
            "request": self._request.name,
            "engagement": self._engagement.name,
            "columns": [spec.candidates, spec.candidate, *spec.request_entity, *spec.engagement_entity],
            "positive": str(spec.positive),
            "within_us": spec.within_us,
        }


def _us(column: str) -> pl.Expr:
    return pl.col(column).dt.epoch("us")


def _label(requests: pl.DataFrame, engagements: pl.DataFrame, spec: JoinSpec) -> pl.DataFrame:
    """`requests` with the labels of their candidates; `engagements` has each id once."""
    request, engagement = spec_of(spec.request), spec_of(spec.engagement)
    engagement_id = str(engagement.id)
    cells = (
        requests.select(
            *(pl.col(c).alias(f"__e{i}") for i, c in enumerate(spec.request_entity)),
            _us(request.time).alias("__t"),
            pl.col(spec.candidates).alias("__c"),
        )
        .with_row_index("__row")
        .filter(pl.col("__c").list.len() > 0)
        .explode("__c")
        .with_row_index("__cell")
    )
    right = engagements.select(
        *(pl.col(c).alias(f"__e{i}") for i, c in enumerate(spec.engagement_entity)),
        pl.col(spec.candidate).alias("__c"),
        pl.col("__time").alias("label_times"),
        pl.col(engagement_id).alias("label_ids"),
        pl.col("appended_us").alias("label_appended_us"),
    )
    keys = [*(f"__e{i}" for i in range(len(spec.request_entity))), "__c"]
    first = (
        cells.join(right, on=keys)
        .filter((pl.col("label_times") >= pl.col("__t")) & (pl.col("label_times") < pl.col("__t") + spec.within_us))
        .sort("__cell", "label_times", "label_ids")
        .unique("__cell", keep="first", maintain_order=True)
        .select("__cell", "label_times", "label_ids", "label_appended_us")
    )
    lists = (
        cells.select("__row", "__cell")
        .join(first, on="__cell", how="left", maintain_order="left")
        .group_by("__row", maintain_order=True)
        .agg(
            pl.col("label_times").is_not_null().cast(pl.Int8).alias("labels"),
            pl.col("label_times").cast(pl.Datetime("us", "UTC")),
            "label_ids",
            "label_appended_us",
        )
    )
    whole = requests.with_row_index("__row").join(lists, on="__row", how="left", maintain_order="left")
    added = [pl.col(c).fill_null(pl.lit([], lists.schema[c])) for c in OUTPUT[:4]]
    return whole.select(*request.polars, *added, "appended_us")
