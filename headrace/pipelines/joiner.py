"""Joiner: joins engagements, as labels, to the requests that showed their candidates.

A request is one event with a list of candidates. A candidate is positive if the same entity has an engagement with it
in [t, t + within), where t is the request's event time. An engagement may label several requests.

    watermark ------------------------------------------------------------------> event time
    request t   |<---------- within ---------->|
    engagements     x (first match)   x        |
                                               '-- emitted once the watermark has passed, in steps of within / 16

Law: the emitted requests, their order (event time, then request id) and their labels are a function of the set of
events, not of their order, batching or duplication, as long as nothing is later than the watermark's lateness. An id
counts once in a step of event time: its copies in other steps are requests or engagements of their own.

With several labels (`JoinSpecs`) each has its own engagements; a request is emitted once, when the longest window has
closed.

A policy that does not wait (`headrace.learners.labels.policy`) examines a request at several ages. At the first age it
is emitted with the labels known so far, at later ages with its late positives only, its other labels being null:

    request t   |-- a0 --|-- a1 --------|-- within ----------------|     ages double
                      known so far   late ones                  late ones

Rows are then ordered by their step of emission, and within a step by the time at which they reached their age, which is
also a function of the events.

Not optimal: each step scans the engagements of one window, and each age reads its requests again.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from prometheus_client import Counter

from headrace.errors import ConfigError, SourceError
from headrace.pipelines.joining.delays import Delays
from headrace.pipelines.joining.engagements import TIME, Engagements, once_a_step
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.pipelines.joining.labels import GROUP_ROWS, label_requests, late_labels
from headrace.pipelines.joining.rows_by_time import RowsByTime
from headrace.pipelines.joining.spec import (
    EMITTED,
    IS_FIRST,
    LABEL_COLUMNS,
    LATE_SHARE,
    POSITIVE_WEIGHT,
    JoinSpec,
    JoinSpecs,
    fingerprint,
    label_column,
    micros,
)
from headrace.schemas import spec_of
from headrace.streams.intake import newest_us
from headrace.streams.source import EventBatch
from headrace.streams.watermark import END_OF_TIME_US

REQUESTS_MAX = 1_000_000
"""Open requests in memory; more are spilled to disk."""
ENGAGEMENTS_MAX = 20_000_000
"""Positive engagements in memory."""
REQUEST_ROWS = 8_192
"""Number of requests in memory at which `keep_in` writes them to a file."""
LONG_AGO_US = -(2**62)
REACHED_US = "__reached_us"
"""Column of the time at which a request reached the age of its emission."""

JOINED = Counter("headrace_joiner_rows_total", "Rows that the joiner took in or gave out", ["outcome"])


class Offsets:
    """Next offset of each partition, so that no row is processed twice."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}

    def positions(self) -> dict[str, int]:
        """Next offset of every partition seen. Rows below it are skipped."""
        return dict(self._positions)

    def new_rows(self, batch: EventBatch) -> EventBatch:
        """Return the rows of a batch, of any event, that are new, and advance the partition's offset past them."""
        offset = self._positions.get(batch.partition, 0)
        self._positions[batch.partition] = max(offset, batch.next_offset)
        return batch.since(offset)

    def skip_to(self, positions: Mapping[str, int]) -> None:
        """Mark rows before `positions` (partition -> next offset) as seen."""
        for partition, offset in positions.items():
            self._positions[partition] = max(self._positions.get(partition, 0), offset)


class Joiner(Offsets):
    """The open requests and engagements of a join. Requests beyond `requests_max`, or 256 MiB, are on disk in `spill`.

    `counts` has the number of rows by outcome. The state, with its offsets, survives a restart by `save` and `load`.
    """

    def __init__(
        self,
        spec: JoinSpec | JoinSpecs,
        *,
        requests_max: int = REQUESTS_MAX,
        engagements_max: int = ENGAGEMENTS_MAX,
        spill: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.counts: dict[str, int] = {}
        self._joins = spec.joins
        self._request = spec_of(spec.request)
        self._engagements_max = engagements_max
        folder = None if spill is None else Path(spill)
        self._open = RowsByTime(
            "requests",
            {**self._request.polars, "appended_us": pl.Int64()},
            micros(self._request.time),
            spec.step_us,
            rows_max=requests_max,
            write_rows=REQUEST_ROWS,
            spill=folder,
        )
        self._engagements = {
            name: Engagements(
                one, spec.step_us, rows_max=engagements_max, name=label_column("engagements", name), spill=folder
            )
            for name, one in self._joins.items()
        }
        self._delays = Delays(len(spec.ages_us))
        self._emitted = [LONG_AGO_US] * len(spec.ages_us)  # by age: slices below this number have been emitted
        self._watermark_us = LONG_AGO_US
        self._newest_us = LONG_AGO_US

    @property
    def open_requests(self) -> int:
        """Number of requests with an open window, in memory or in files."""
        return self._open.rows

    @property
    def requests_in_memory(self) -> int:
        """Number of open requests in memory."""
        return self._open.rows_in_memory

    @property
    def waiting_engagements(self) -> int:
        """Number of engagements that an open or future request could match; each counts once for every label."""
        return sum(each.rows.rows for each in self._engagements.values())

    def keep_in(self, folder: Path) -> None:
        """Keep requests and engagements in subfolders of a persistent folder, which makes saving faster.

        Call it before the first row or `load`. A saved state then also needs this folder.
        """
        for name, store in self._stores.items():
            store.keep_in(folder / name)

    def add(self, batch: EventBatch) -> None:
        """Add the new rows of a batch of requests or engagements.

        Raises:
            SourceError: the batch has another event class.
        """
        self.add_new(self.new_rows(batch))

    def add_new(self, batch: EventBatch) -> None:
        """Add requests or engagements that `new_rows` returned.

        Raises:
            SourceError: the batch has another event class.
        """
        labels = [name for name, one in self._joins.items() if one.engagement is batch.event]
        if batch.event is self.spec.request:
            self._add_requests(batch)
        for name in labels:
            self._add_engagements(batch, name)
        if batch.event is not self.spec.request and not labels:
            names = " or ".join(dict.fromkeys([self._request.name, *(spec_of(e).name for e in self.spec.engagements)]))
            raise SourceError(f"{batch.partition}: the joiner takes {names}, not {batch.event.__name__}")

    def _add_requests(self, batch: EventBatch) -> None:
        """Add requests. A request older than the watermark is late: it is counted and dropped."""
        frame = self._with_append_times(batch)
        on_time = frame.filter(micros(self._request.time) >= self._watermark_us)
        self._count("late_requests", frame.height - on_time.height)
        if on_time.is_empty():
            return
        self._count("spilled_requests", self._open.add(on_time))

    def _add_engagements(self, batch: EventBatch, name: str) -> None:
        """Add engagements of one label. One that no open or future request can match is late: counted and dropped.

        An engagement for which an expression of the label fails is dropped too, counted as "failed_engagements".

        Raises:
            ConfigError: there are more than `engagements_max`.
        """
        engagements, spec = self._engagements[name], self._joins[name]
        labelled, failed = labelled_events(self._with_append_times(batch), spec)
        self._count("failed_engagements", failed)
        time_us = micros(spec_of(spec.engagement).time).alias(TIME)
        columns = (*engagements.columns, "appended_us", LABEL, IS_POSITIVE)
        useful = labelled.select(*columns, time_us).filter(pl.col(TIME) >= self._floor_us())
        self._count("late_engagements", labelled.height - useful.height)
        if not useful.is_empty():
            engagements.add(useful)
        if self.waiting_engagements > self._engagements_max:
            raise ConfigError(
                f"joiner: {self.waiting_engagements} engagements wait, limit engagements_max="
                f"{self._engagements_max}: raise it, or shorten within"
            )

    def advance(self, watermark_us: int) -> pl.DataFrame | None:
        """Return the requests whose label window the watermark has passed, in order; None if there are none.

        At `END_OF_TIME_US` all requests are due. For a policy that does not wait, see the module docstring.

        Returns:
            (n_requests,): the request's columns, then `labels` List(Int8) with a 0 or 1 per candidate, `label_times`
            List(Datetime), `label_ids` and `label_appended_us` List(Int64) of each candidate's first match (null
            without a match), `appended_us` of the request. Labels are Float32 if the spec has a `value`, and null if
            unknown. A positive match takes precedence over a negative match. Of several labels each has its own
            columns, `labels_<name>` and so on. A policy that does not wait adds `emitted_step` Int64, `is_first`
            Boolean, `late_share` and `positive_weight` Float32, from which the weights of examples are computed.
        """
        ended = watermark_us >= END_OF_TIME_US
        # The end is not final: a later run over more of the stream continues after the newest event.
        self._watermark_us = max(self._watermark_us, self._newest_us if ended else watermark_us)
        frames = [frame for frame in self._due_frames(ended=ended) if frame.height]
        for each in self._engagements.values():
            each.drop_before(self._floor_us())
        if not frames:
            return None
        return self._in_order(pl.concat(frames)) if self.spec.is_early else pl.concat(frames)

    def _in_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Sort rows by step of emission and by the time at which they reached their age, mixing late and early rows.

        Late positives at the end of each step would form a micro-batch of positives only, and raise the intercept.
        """
        return rows.sort(EMITTED, REACHED_US, str(self.spec.request_id), maintain_order=True).drop(REACHED_US)

    def _due_frames(self, *, ended: bool) -> Iterator[pl.DataFrame]:
        """Labelled requests in the order of emission."""
        due: list[tuple[int, int, list[int]]] = []  # step of emission, age, slices
        step_us = self.spec.step_us
        for age, age_us in enumerate(self.spec.ages_us):
            age_steps = -(-age_us // step_us)
            late_us = age_steps * step_us if self.spec.is_early else age_us
            before = None if ended else (self._watermark_us - late_us) // step_us
            numbers = [number for number in self._open.due(before) if number >= self._emitted[age]]
            self._emitted[age] = LONG_AGO_US if before is None else max(self._emitted[age], before)
            if self.spec.is_early:
                due += [(number + 1 + age_steps, age, [number]) for number in numbers]
            else:
                due += [(0, age, group) for group in self._groups(numbers)]
        for emitted, age, numbers in sorted(due):
            yield self._labelled(emitted, age, numbers)

    def _groups(self, numbers: list[int]) -> Iterator[list[int]]:
        """Group slices so that each group has few requests, which limits the memory for labelling."""
        group: list[int] = []
        rows = 0
        for number in numbers:
            rows += (more := self._open.rows_of(number))
            if group and rows > GROUP_ROWS:
                yield group
                group, rows = [], more
            group.append(number)
        if group:
            yield group

    def _labelled(self, emitted: int, age: int, numbers: list[int]) -> pl.DataFrame:
        """The requests of some slices as emitted at an age; at the last age they are removed."""
        is_last = age == len(self.spec.ages_us) - 1
        requests = self._once(self._open.take(numbers) if is_last else self._open.read(numbers), is_first=age == 0)
        first_us, before_us = numbers[0] * self.spec.step_us, (numbers[-1] + 1) * self.spec.step_us
        labelled: pl.DataFrame | None = None
        for name, one in self._joins.items():
            within_us = self.spec.ages_us[age] if self.spec.is_early else one.within_us
            engagements = self._engagements[name].once(first_us, before_us + within_us, self._count)
            frame = label_requests(requests, engagements, one, within_us)
            frame = frame.rename({column: label_column(column, name) for column in LABEL_COLUMNS})
            labelled = frame if labelled is None else _with_label(labelled, frame, name)
        assert labelled is not None
        if age == 0:
            self._count("requests", labelled.height)
        if is_last:
            self._count_unjoined(labelled)
        return self._as_emitted(labelled, emitted, age) if self.spec.is_early else labelled

    def _as_emitted(self, labelled: pl.DataFrame, emitted: int, age: int) -> pl.DataFrame:
        """The requests emitted at an age, with the columns of a policy that does not wait."""
        spec = self._joins[""]
        since_us = self.spec.ages_us[age - 1] if age else 0
        fresh = late_labels(labelled, spec, since_us)
        positives = int((fresh["labels"].explode() > 0).sum())
        self._delays.observe(age, positives, int(labelled["labels"].list.len().sum()))
        share = 0.0 if spec.absent_is_unknown else self._delays.late_share()
        if age == 0:
            rows, weight = labelled, 1.0 if spec.corrects else 1.0 / (1.0 - share)
        else:
            rows, weight = fresh if spec.corrects else fresh.clear(), 1.0
            self._count("late_labels", positives)
        return rows.with_columns(
            (micros(self._request.time) + self.spec.ages_us[age]).alias(REACHED_US),
            pl.lit(emitted, pl.Int64).alias(EMITTED),
            pl.lit(age == 0).alias(IS_FIRST),
            pl.lit(share if age == 0 else 0.0, pl.Float32).alias(LATE_SHARE),
            pl.lit(weight, pl.Float32).alias(POSITIVE_WEIGHT),
        )

    def save(self, folder: str | Path) -> None:
        """Write the whole state, with its offsets, into `folder`."""
        self.capture()(Path(folder))

    def capture(self) -> Callable[[Path], None]:
        """Capture the current state; returns a function that writes it into a folder, in any thread.

        The previously captured state must be on disk, unless `not_written` was called.
        """
        writers = {name: store.capture() for name, store in self._stores.items()}
        state = {
            "watermark_us": self._watermark_us,
            "newest_us": self._newest_us,
            "positions": self.positions(),
            "counts": dict(self.counts),
            "spec": fingerprint(self._joins),
            "emitted": list(self._emitted),
            "delays": self._delays.facts(),
        }

        def write(target: Path) -> None:
            target.mkdir(parents=True, exist_ok=True)
            facts = {name: writer(target) for name, writer in writers.items()}
            (target / "joiner.json").write_bytes(orjson.dumps({**state, "stores": facts}))

        return write

    def not_written(self) -> None:
        """See `RowsByTime.not_written`."""
        for store in self._stores.values():
            store.not_written()

    @property
    def _stores(self) -> dict[str, RowsByTime]:
        """The stores of requests and engagements, by their names in a saved state and in the folder of `keep_in`."""
        named = {label_column("engagements", name): each.rows for name, each in self._engagements.items()}
        return {"requests": self._open, **named}

    def load(self, folder: str | Path) -> None:
        """Load the state that `save` wrote.

        Raises:
            ConfigError: it was written by a joiner with another spec.
            SnapshotError: a file of open requests is missing or damaged.
        """
        source = Path(folder)
        state: dict[str, Any] = orjson.loads((source / "joiner.json").read_bytes())
        if state["spec"] != (declared := fingerprint(self._joins)):
            raise ConfigError(f"joiner state in {source} belongs to {state['spec']}, not to {declared}")
        self._watermark_us, self._newest_us = state["watermark_us"], state["newest_us"]
        self._positions, self.counts = state["positions"], state["counts"]
        if "stores" not in state:
            self._load_earlier_release(source, state)
            return
        self._emitted = state["emitted"]
        self._delays.load(state["delays"])
        for name, store in self._stores.items():
            store.load(source, state["stores"][name])

    def _load_earlier_release(self, source: Path, state: Mapping[str, Any]) -> None:
        """Load a state of an earlier release, whose engagements are in the checkpoint itself."""
        self._open.load(source, {"files": state.get("request_files", ())})
        engagements = pl.read_ipc((source / "engagements.arrow").read_bytes())
        if LABEL not in engagements.columns:  # all were positive
            engagements = engagements.with_columns(
                pl.lit(1.0, pl.Float32).alias(LABEL), pl.lit(value=True).alias(IS_POSITIVE)
            )
        if engagements.height:
            self._engagements[""].add(engagements)

    def _with_append_times(self, batch: EventBatch) -> pl.DataFrame:
        newest = newest_us(batch)
        self._newest_us = self._newest_us if newest is None else max(self._newest_us, newest)
        return batch.frame.with_columns(
            pl.Series("appended_us", batch.appended_us, dtype=pl.Int64)
            if batch.appended_us is not None
            else pl.lit(None, pl.Int64).alias("appended_us")
        )

    def _once(self, rows: pl.DataFrame, *, is_first: bool) -> pl.DataFrame:
        """Sort requests and keep each id once in a step."""
        once = once_a_step(rows, str(self.spec.request_id), micros(self._request.time), self.spec.step_us)
        self._count("duplicate_requests", rows.height - once.height if is_first else 0)
        return once

    def _floor_us(self) -> int:
        """Time before which engagements match no open or future request."""
        first = self._open.first()
        return self._watermark_us if first is None else min(first * self.spec.step_us, self._watermark_us)

    def _count_unjoined(self, labelled: pl.DataFrame) -> None:
        """Count the requests without an engagement of any label."""
        matched = [pl.col(label_column("label_ids", name)).list.drop_nulls().list.len() > 0 for name in self._joins]
        self._count("unjoined_requests", labelled.filter(~pl.any_horizontal(matched)).height)

    def _count(self, outcome: str, rows: int) -> None:
        if rows:
            self.counts[outcome] = self.counts.get(outcome, 0) + rows
            JOINED.labels(outcome).inc(rows)


def _with_label(labelled: pl.DataFrame, frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """`labelled` with the columns of one more label from `frame`, which has the same rows in the same order."""
    columns = [label_column(column, name) for column in LABEL_COLUMNS]
    order = [*(column for column in labelled.columns if column != "appended_us"), *columns, "appended_us"]
    return labelled.hstack(frame.select(columns)).select(order)
