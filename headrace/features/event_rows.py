"""Convert frames of events to the arrays that a view's groups take: one Polars select, then NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from headrace.errors import SchemaError
from headrace.features.expressions.event_columns import EventColumns
from headrace.features.expressions.failing_rows import VALUE_ERRORS, Failures, select_rows
from headrace.features.keys import NULL_ID, EntityKey, ids_of_column, key_expr, texts_of
from headrace.features.state.layout import Layout
from headrace.features.state.lists.update import FLOAT, TEXT
from headrace.features.state.operations import Events
from headrace.kernels.hashing import hash_spans, hash_words
from headrace.kernels.texts import POOL, hash_text, text_buffers
from headrace.schemas import Event, EventSpec, spec_of

_VALUES_CHARS = 160
"""Maximum characters of an event's values quoted in a message."""
_NULL_HASH = np.int64(-0x6A09E667F3BCC909)


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Events (m,) that a view leaves out because one of its expressions raises for them.

    Attributes:
        index: (m,) int64, row in the frame; rows with a null key are left out.
        ids: (m,) int64, entity.
        causes: (m,) int64, index into `expressions` of the first that failed.
        expressions: the expressions of the view, and the features that use them.
    """

    index: NDArray[np.int64]
    ids: NDArray[np.int64]
    causes: NDArray[np.int64]
    expressions: tuple["FailedExpression", ...]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, mask: NDArray[np.bool_]) -> "FailedRows":
        """The rows selected by a mask (m,)."""
        return replace(self, index=self.index[mask], ids=self.ids[mask], causes=self.causes[mask])

    def shifted(self, start: int) -> "FailedRows":
        """The rows with `start` added to every index, for frames that are parts of a larger one."""
        return replace(self, index=self.index + start)


@dataclass(frozen=True, slots=True)
class FailedExpression:
    """An expression that raises for some events: `columns` are those it reads, `message` is Polars' error for one."""

    features: tuple[str, ...]
    text: str
    columns: tuple[str, ...]
    message: str

    @property
    def summary(self) -> str:
        """The features, the expression, and Polars' error message."""
        return f"feature {', '.join(self.features)}: {self.text} has no value: {self.message}"

    def details(self, events: pl.DataFrame) -> list[str]:
        """A message for each of the events (m,) that it fails for, with the values it reads."""
        words = f"feature {', '.join(self.features)}: {self.text} has no value for "
        inputs = events.select(self.columns).with_columns(pl.col(pl.Binary).bin.encode("hex"))
        values = inputs.select(pl.struct(self.columns).struct.json_encode().str.slice(0, _VALUES_CHARS)).to_series()
        return (words + values + f": {self.message}").to_list()


@dataclass(frozen=True, slots=True)
class Rows:
    """Events (n,) of one class, as a view needs them.

    Attributes:
        ids: (n,) int64, entity.
        time_us: (n,) int64, event time.
        event_id: (n,) uint64, XXH64 of the event's id, seeded by the class's name. For a class without an id, the hash
            of the columns that the view reads, in their declared types. Zeros if no feature of the view needs it.
        index: (n,) int64, row in the frame; rows with a null key are left out.
        events: the event columns for the groups.
        failed: rows left out because an expression of the view raises for them; at most one part per source frame.
    """

    ids: NDArray[np.int64]
    time_us: NDArray[np.int64]
    event_id: NDArray[np.uint64]
    index: NDArray[np.int64]
    events: Events
    keys: pl.Series | None
    failed: tuple[FailedRows, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self, index: NDArray[np.int64] | None = None) -> list[bytes]:
        """Key texts of the rows `index` (m,), or of all rows."""
        if self.keys is None:
            return texts_of(self.ids if index is None else self.ids[index], None)
        return texts_of(self.ids, self.keys if index is None else self.keys.gather(index))

    def take(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> "Rows":
        """The rows selected by a mask (n,) or index (m,)."""
        picked = np.flatnonzero(mask) if mask.dtype == np.bool_ else mask
        events = self.events
        return Rows(
            self.ids[picked],
            self.time_us[picked],
            self.event_id[picked],
            self.index[picked],
            Events(events.event_ids[picked], events.flags[picked], events.numbers[picked], events.bits[picked]),
            None if self.keys is None else self.keys.gather(picked),
            self.failed,
        )

    def shifted(self, start: int) -> "Rows":
        """The rows with `start` added to every index, for frames that are parts of a larger one."""
        return replace(self, index=self.index + start, failed=tuple(part.shifted(start) for part in self.failed))


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """Concatenate one or more parts of the same view."""
    if len(parts) == 1:
        return parts[0]
    keys = [part.keys for part in parts if part.keys is not None]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.time_us for part in parts]),
        np.concatenate([part.event_id for part in parts]),
        np.concatenate([part.index for part in parts]),
        Events(
            np.concatenate([part.events.event_ids for part in parts]),
            np.concatenate([part.events.flags for part in parts]),
            np.concatenate([part.events.numbers for part in parts]),
            np.concatenate([part.events.bits for part in parts]),
        ),
        pl.concat(keys) if keys else None,
        tuple(failed for part in parts for failed in part.failed),
    )


class EventReader:
    """Turns frames of one event class into rows of one view.

    Args:
        key: the view's name and key columns.
        columns: flag, number and bit columns of the view, in this order.
        layout: the layout that the rows feed.
    """

    def __init__(
        self,
        event: type[Event],
        key: EntityKey,
        columns: tuple[EventColumns, EventColumns, EventColumns],
        layout: Layout,
    ) -> None:
        self._path = f"view {key.name} · event {event.__name__}"
        self._spec = spec_of(event)
        self._key_dtype = key.key_dtype
        self._layout = layout
        flags, _, bits = columns
        self._flags, self._numbers, self._bits = (one.expressions[event] for one in columns)
        self._kinds = bits.kinds
        self._seed = np.uint64(xxhash.xxh64_intdigest(event.__name__.encode()))
        self._always = [column for column in self._flags if flags.texts[column].startswith("all @")]
        parts = [pl.col(name) for name in key.entity]
        self._select = [
            key_expr(parts, key.key_dtype).alias("key"),
            pl.col(self._spec.time)
            .cast(pl.Datetime("us") if _is_naive(self._spec) else pl.Datetime("us", "UTC"))
            .cast(pl.Int64)
            .alias("time"),
        ]
        if layout.needs_ids and self._spec.id:
            self._select.append(pl.col(self._spec.id).alias("id"))
        self._facts = len(self._select)
        self._users: list[tuple[str, ...]] = [()] * self._facts
        for kind, one in zip(("flag", "number", "bits"), columns, strict=True):
            for column, expression in one.expressions[event].items():
                if kind != "flag" or column not in self._always:
                    self._select.append(expression.alias(f"{kind}{column}"))
                    self._users.append(tuple(one.users[column]))
        self._identity = self._columns_read([*parts, *self._select])

    def rows(self, frame: pl.DataFrame) -> Rows:
        """Rows of a frame; see `ViewPlan.rows`."""
        values, failures = self._selected(frame)
        index, failed = np.arange(frame.height), tuple[FailedRows, ...]()
        if failures is not None:
            failed = (self._failed(frame, failures),)
            index = np.delete(index, failures.index)
            frame = frame[index]
        if values["key"].null_count():
            present = values["key"].is_not_null()
            index = index[present.to_numpy()]
            values, frame = values.filter(present), frame.filter(present)
        ids, keys = ids_of_column(values["key"], self._key_dtype)
        event_ids = self._event_ids(values, frame) if self._layout.needs_ids else np.zeros(len(ids), np.int64)
        events = Events(event_ids, self._flag_matrix(values), self._number_matrix(values), self._bit_matrix(values))
        return Rows(ids, values["time"].to_numpy(writable=True), event_ids.view(np.uint64), index, events, keys, failed)

    def sample(self) -> Rows:
        """A synthetic row that exercises every kernel; no expression of the view is evaluated."""
        flags, numbers, bits = self._layout.columns
        texts = pl.Series(["x"])
        ids, keys = ids_of_column(pl.Series([1]) if self._key_dtype == "int" else texts, self._key_dtype)
        words = [POOL.intern(texts)[0] if kind == TEXT else 1 for kind in self._kinds]
        events = Events(
            np.ones(1, np.int64), np.ones((1, flags), np.uint8), np.ones((1, numbers)), np.array([words], np.int64)
        )
        assert events.bits.shape == (1, bits)
        return Rows(ids, np.ones(1, np.int64), np.ones(1, np.uint64), np.zeros(1, np.int64), events, keys)

    def _selected(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, Failures | None]:
        """Key, time and the view's columns of the rows for which all expressions succeed; and the rows that fail.

        Raises:
            SchemaError: the frame's types do not fit, as opposed to single values.
        """
        try:
            values, failures = frame.select(self._select), None
        except pl.exceptions.ColumnNotFoundError as exc:
            name = str(exc).split("\n", 1)[0]
            raise SchemaError(f"{self._path}: column not found: {name}; there are {', '.join(frame.columns)}") from exc
        except VALUE_ERRORS:
            self._require_types(frame)
            values, failures = select_rows(frame, self._select)
        if values["time"].null_count():
            raise SchemaError(
                f"{self._path}: {self._spec.time} is null in {values['time'].null_count()} rows; drop them"
            )
        return values, failures

    def _require_types(self, frame: pl.DataFrame) -> None:
        """Raise SchemaError if the expressions fail because of the frame's types and not because of single values."""
        try:
            frame.head(0).select(self._select)
            frame.select(self._select[: self._facts])
        except VALUE_ERRORS as exc:
            raise SchemaError(f"{self._path}: {exc}") from exc

    def _failed(self, frame: pl.DataFrame, failures: Failures) -> FailedRows:
        keys = frame[failures.index].select(self._select[0]).to_series()
        ids, _ = ids_of_column(keys, self._key_dtype)
        known = ids != NULL_ID
        expressions = tuple(
            FailedExpression(
                users,
                str(expression.meta.undo_aliases()),
                tuple(dict.fromkeys(expression.meta.root_names())),
                failures.messages.get(position, ""),
            )
            for position, (users, expression) in enumerate(zip(self._users, self._select, strict=True))
        )
        return FailedRows(failures.index[known], ids[known], failures.causes[known], expressions)

    def _columns_read(self, expressions: Sequence[pl.Expr]) -> list[str]:
        """Declared columns that the view reads. They identify an event without an id; extra columns do not matter."""
        if any(expression.meta.has_multiple_outputs() for expression in expressions):
            return list(self._spec.polars)
        roots = {root for expression in expressions for root in expression.meta.root_names()}
        return [name for name in self._spec.polars if name in roots]

    def _flag_matrix(self, values: pl.DataFrame) -> NDArray[np.uint8]:
        matrix = np.zeros((values.height, self._layout.columns[0]), np.uint8)
        for column in self._flags:
            matrix[:, column] = 1 if column in self._always else values[f"flag{column}"].to_numpy()
        return matrix

    def _number_matrix(self, values: pl.DataFrame) -> NDArray[np.float64]:
        matrix = np.full((values.height, self._layout.columns[1]), np.nan)
        for column in self._numbers:
            matrix[:, column] = values[f"number{column}"].to_numpy()
        return matrix

    def _bit_matrix(self, values: pl.DataFrame) -> NDArray[np.int64]:
        matrix = np.zeros((values.height, self._layout.columns[2]), np.int64)
        for column in self._bits:
            series, kind = values[f"bits{column}"], self._kinds[column]
            if kind == TEXT:
                matrix[:, column] = POOL.intern(series)
            elif kind == FLOAT:
                matrix[:, column] = _float_bits(series)
            else:
                matrix[:, column] = series.fill_null(0).to_numpy()
        return matrix

    def _event_ids(self, values: pl.DataFrame, frame: pl.DataFrame) -> NDArray[np.int64]:
        out = np.empty(values.height, np.int64)
        if not self._spec.id:
            columns = [frame[name].cast(self._spec.polars[name]) for name in self._identity]
            words = np.stack([_column_words(column) for column in columns], axis=1)
            hash_spans(words.view(np.uint8).reshape(-1), np.arange(len(words) + 1) * 8 * len(columns), self._seed, out)
        elif values["id"].dtype == pl.String:
            hash_spans(*text_buffers(values["id"]), self._seed, out)
        else:
            hash_words(_column_words(values["id"]), self._seed, out)
        return out


def _is_naive(spec: EventSpec) -> bool:
    return getattr(spec.polars[spec.time], "time_zone", None) is None


def _float_bits(series: pl.Series) -> NDArray[np.int64]:
    """Bits (n,) of floats, with NaN and zero in one form each."""
    values = series.to_numpy() + 0.0
    values[np.isnan(values)] = np.nan
    return np.ascontiguousarray(values, np.float64).view(np.int64)


def _column_words(series: pl.Series) -> NDArray[np.int64]:
    """One 64-bit word (n,) per value, equal in every process."""
    dtype = series.dtype
    if dtype.is_integer() or dtype in (pl.Boolean, pl.Datetime, pl.Date):
        words = series.cast(pl.Int64, wrap_numerical=True).fill_null(_NULL_HASH).to_numpy(writable=True)
    elif dtype.is_float():
        words = _float_bits(series)
    else:
        text = series if dtype == pl.String else _as_text(series)
        words = hash_text(text)
        words[series.is_null().to_numpy()] = _NULL_HASH
    return words


def _as_text(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Binary:
        return series.bin.encode("hex")
    return series.to_frame("value").select(pl.struct("value").struct.json_encode()).to_series()
