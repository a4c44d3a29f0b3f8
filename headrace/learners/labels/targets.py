"""Targets of a batch, checked before anything is learned, since one wrong number would damage weights permanently.

Limits. A large finite number can do as much damage as an infinite one: a gradient of 1e20 has a square beyond float32,
which makes the optimizer's state of its row infinite from then on. So weights, log-rates and numeric labels have
limits, far above any meaningful value: at them a squared gradient is 1e12, and 1e24 for a numeric label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError
from headrace.learners.models.loss import Floats, LogRate
from headrace.learners.models.model import Model

WEIGHT_MAX = 1e6
"""Largest importance of an example."""
LOG_RATE_MAX = 50.0
"""Largest distance of a log-rate from 0: odds of 5e21."""
TIME_US_MAX = 2**62
"""Largest distance of an event time from 1970, in microseconds."""

Check = tuple[str, NDArray[Any], NDArray[np.bool_], str]
"""Name, values, mask of the allowed values, and a description of what is allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Labels (B, L), weights (B,) or None, and log-rates; lists and other sequences of numbers become arrays.

    Raises:
        SchemaError: one of them does not hold numbers.
    """

    labels: NDArray[Any]
    weights: NDArray[Any] | None
    log_rate: LogRate

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", numbers_of("labels", self.labels))
        if self.weights is not None:
            object.__setattr__(self, "weights", numbers_of("weights", self.weights))
        if not isinstance(self.log_rate, float):
            object.__setattr__(self, "log_rate", numbers_of("log_rate", self.log_rate))

    @staticmethod
    def shape_of(columns: int, rows: int) -> tuple[int, ...]:
        """Shape of an array with `columns` labels or outputs per example."""
        return (rows,) if columns == 1 else (rows, columns)

    def take(self, examples: slice) -> "Targets":
        """Select examples."""
        rate = np.asarray(self.log_rate)
        weights = None if self.weights is None else self.weights[examples]
        return Targets(self.labels[examples], weights, rate[examples] if rate.ndim else self.log_rate)

    def arrays(self, rows: int) -> tuple[Floats, Floats]:
        """Labels (B, L) and weights (B,), float32 and contiguous."""
        weights = np.ones(rows, np.float32) if self.weights is None else self.weights
        return np.ascontiguousarray(self.labels, dtype=np.float32), np.ascontiguousarray(weights, dtype=np.float32)

    def check(self, name: str, model: Model, rows: int) -> None:
        """Check shapes and values for the learner `name`, since a wrong value would damage weights permanently.

        Raises:
            SchemaError: an array does not have the model's shape, or has a value that is not allowed.
        """
        loss = model.loss
        shapes = (("labels", self.labels, model.labels), ("weights", self.weights, 1))
        for part, array, columns in shapes:
            if array is not None and array.shape != (shape := self.shape_of(columns, rows)):
                raise SchemaError(f"learner {name} · {part} {array.shape}: wanted {shape}")
        allowed = np.asarray(loss.is_allowed(self.labels))
        if allowed.shape != self.labels.shape:
            raise DeclarationError(
                f"loss {type(loss).__name__}: `is_allowed` returned {allowed.shape}; return a mask {self.labels.shape}"
            )
        checks: list[Check] = [("labels", self.labels, allowed, loss.label_values)]
        rate = self.log_rate
        if not isinstance(rate, float) or rate != 0.0:
            checks += self._rate_checks(np.asarray(rate), model, rows, name)
        if self.weights is not None:
            allowed = (self.weights >= 0) & (self.weights <= WEIGHT_MAX)
            checks.append(("weights", self.weights, allowed, f"a finite number of 0 to {WEIGHT_MAX:,.0f}"))
        _require_allowed(name, checks)

    def _rate_checks(self, rate: NDArray[Any], model: Model, rows: int, name: str) -> list[Check]:
        """The checks of log-rates in range, of the model's shape.

        Raises:
            SchemaError: the log-rates have another shape.
        """
        checks = _range_checks(rate, model)
        if not model.loss.is_binary:
            return checks
        if model.outputs > 1 and rate.shape != (rows, model.outputs):
            checks.append(("log_rate", rate, rate == 0, f"0, or one for each output: ({rows}, {model.outputs})"))
        elif model.outputs == 1 and rate.shape not in ((), (rows,)):
            raise SchemaError(f"learner {name} · log_rate {rate.shape}: wanted a number, or ({rows},)")
        return checks


def rate_of(name: str, model: Model, log_rate: LogRate, rows: int) -> LogRate:
    """Check the log-rates of a prediction: a number, (B,), or (B, K) for a model of several outputs.

    Raises:
        SchemaError: they have the wrong shape or type, or one of them is out of range.
    """
    if isinstance(log_rate, float) and log_rate == 0.0:
        return log_rate
    rate = numbers_of("log_rate", log_rate)
    shapes = [(), (rows,), *([(rows, model.outputs)] if model.outputs > 1 else [])]
    if rate.shape not in shapes:
        listed = ", ".join(map(str, shapes[1:]))
        raise SchemaError(f"learner {name} · log_rate {rate.shape}: wanted a number, or {listed}")
    _require_allowed(name, _range_checks(rate, model))
    return rate


def _range_checks(rate: NDArray[Any], model: Model) -> list[Check]:
    """The checks of log-rates that do not depend on the model's outputs."""
    meaning = f"a finite number of -{LOG_RATE_MAX:.0f} to {LOG_RATE_MAX:.0f}"
    checks: list[Check] = [("log_rate", rate, np.abs(rate) <= LOG_RATE_MAX, meaning)]
    if not model.loss.is_binary:
        checks.append(("log_rate", rate, rate == 0, "0, for the model's loss is not of probabilities"))
    return checks


def _require_allowed(name: str, checks: Sequence[Check]) -> None:
    for part, values, allowed, meaning in checks:
        if not allowed.all():
            raise SchemaError(f"learner {name} · {part}: {values[~allowed].reshape(-1)[0]}, wanted {meaning}")


def numbers_of(name: str, values: Any) -> NDArray[Any]:
    """Convert a sequence to an array of numbers.

    Raises:
        SchemaError: the values are not numbers.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise SchemaError(f"{name}: {str(values)[:60]}: give an array of numbers ({exc})") from exc
    if array.dtype.kind not in "fiub":
        raise SchemaError(f"{name} of type {array.dtype}: give numbers")
    return array


def times_of(name: str, event_time_us: Any, rows: int) -> NDArray[np.int64] | None:
    """Check event times, () or (B,); None if none are given.

    Raises:
        SchemaError: they are not times in microseconds, or have another shape.
    """
    if event_time_us is None:
        return None
    times, what = np.asarray(event_time_us), f"learner {name} · event_time_us"
    if times.shape not in ((), (rows,)):
        raise SchemaError(f"{what} {times.shape}: wanted a number, or ({rows},)")
    if times.dtype.kind not in "fiu" or not ((times >= -TIME_US_MAX) & (times <= TIME_US_MAX)).all():
        given = times.reshape(-1)[:1].tolist()
        raise SchemaError(f"{what}: {times.dtype} {given}, wanted microseconds since 1970, as int64")
    return times.astype(np.int64)


def check_starts(what: str, starts: Any, rows: int) -> None:
    """Check that `starts` (requests + 1,) are first rows of requests, ascending from 0 to `rows`; None is allowed.

    Raises:
        SchemaError: they are not; a kernel would read and write beyond its arrays.
    """
    if starts is None:
        return
    firsts = np.asarray(starts)
    is_valid = firsts.ndim == 1 and firsts.size > 0 and firsts.dtype.kind in "iu"
    if not (is_valid and firsts[0] == 0 and firsts[-1] == rows and (firsts[1:] >= firsts[:-1]).all()):
        shown = np.array2string(firsts, threshold=6, edgeitems=3)
        raise SchemaError(f"{what} · starts {shown}: wanted first rows of requests, ascending from 0, and {rows}")
