"""Training examples in groups of rows that are ranked together and never split, from requests or events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.learners import Inputs

REQUESTS, EVENTS, LATE = 0, 1, 2  # values of `Examples.source`; LATE: positives after their request was learned
SOURCES = ("requests", "events", "late_labels")

SKIPPED = Counter("headrace_requests_skipped_total", "Joined requests that could not be trained on.", ["reason"])


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n examples in groups; group g is rows [starts[g], starts[g + 1]).

    `labels` (n,) or (n, L) float32, NaN where one of several is unknown, `log_rate` (n,) float32, `time_us` (n,) int64
    event time, `source` (n,) int64, `starts` (groups + 1,) int64. `early` (n, 2) float32 are the share of positives
    that arrive later and the weight of a positive; None if labels are final.
    """

    inputs: Inputs
    labels: NDArray[np.float32]
    log_rate: NDArray[np.float32]
    time_us: NDArray[np.int64]
    source: NDArray[np.int64]
    starts: NDArray[np.int64]
    early: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def weights(self, predict: Callable[[Inputs, NDArray[np.float32]], NDArray[np.float32]]) -> NDArray[Any] | None:
        """Importance (n,) by the policy; None: all 1. `predict` returns probabilities of inputs at their log-rates.

        See `headrace.learners.labels.policy`.
        """
        if self.early is None:
            return None
        p, (late_share, weight) = predict(self.inputs, self.log_rate).astype(np.float64), self.early.T
        real = (1 - p) / np.maximum(1 - p * (1 - late_share), 1e-9)
        return np.asarray(np.where(self.labels > 0.5, weight, real), np.float32)

    def groups(self, first: int, last: int) -> "Examples":
        """The examples of groups [first, last)."""
        rows = slice(int(self.starts[first]), int(self.starts[last]))
        return self._take(rows, self.starts[first : last + 1] - self.starts[first])

    def by_step(self, step_us: int) -> "dict[int, Examples]":
        """Groups by event time // `step_us`, each in order; groups must be in time order."""
        numbers = self.time_us[self.starts[:-1]] // step_us
        firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        edges = [*firsts.tolist(), len(numbers)]
        return {int(numbers[first]): self.groups(first, end) for first, end in pairwise(edges)}

    def learnable(self, is_allowed: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> "Examples":
        """The groups with only allowed labels. Other groups are counted, as one bad label must not stop the stream."""
        allowed = is_allowed(self.labels).reshape(len(self), -1).all(axis=1)
        if allowed.all():
            return self
        sizes, kept = np.diff(self.starts), np.logical_and.reduceat(allowed, self.starts[:-1])
        SKIPPED.labels("labels").inc(len(kept) - int(kept.sum()))
        return self._take(np.repeat(kept, sizes), np.concatenate([[0], np.cumsum(sizes[kept])]))

    def _take(self, rows: NDArray[np.bool_] | slice, starts: NDArray[np.int64]) -> "Examples":
        """Select the rows of whole groups, which begin at `starts`."""
        arrays = (self.labels[rows], self.log_rate[rows], self.time_us[rows], self.source[rows])
        return Examples(self.inputs.take(rows), *arrays, starts, None if self.early is None else self.early[rows])

    @staticmethod
    def concat(parts: "list[Examples]") -> "Examples":
        """Concatenate the groups of `parts`, in order; needs at least one part."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(len(part) for part in parts)])
        starts = [np.zeros(1, dtype=np.int64), *(p.starts[1:] + e for p, e in zip(parts, ends, strict=False))]
        return Examples(
            Inputs.concat([part.inputs for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.log_rate for part in parts]),
            np.concatenate([part.time_us for part in parts]),
            np.concatenate([part.source for part in parts]),
            np.concatenate(starts),
            None if all(part.early is None for part in parts) else np.concatenate([p.early_or_final for p in parts]),
        )

    @property
    def early_or_final(self) -> NDArray[np.float32]:
        """`early`, or its value for final labels: no later positives, and a weight of 1."""
        return np.tile(np.array([0, 1], np.float32), (len(self), 1)) if self.early is None else self.early

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The examples as plain arrays."""
        early = {} if self.early is None else {"early": self.early}
        return early | {
            "inputs": np.frombuffer(self.inputs.to_bytes(), dtype=np.uint8),
            "labels": self.labels,
            "log_rate": self.log_rate,
            "time_us": self.time_us,
            "source": self.source,
            "starts": self.starts,
        }

    @staticmethod
    def of_state(arrays: Mapping[str, NDArray[Any]], fingerprint: str) -> "Examples":
        """Restore examples from the arrays of `state_dict`."""
        names = ("labels", "log_rate", "time_us", "source", "starts")
        inputs = Inputs.from_bytes(arrays["inputs"].tobytes(), fingerprint)
        labels, log_rate, time_us, source, starts = (arrays[name] for name in names)
        return Examples(inputs, labels, log_rate, time_us, source, starts, arrays.get("early"))
