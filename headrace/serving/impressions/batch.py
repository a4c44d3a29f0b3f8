"""Impressions before they are encoded: of one request, or of a scored batch in columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.learners import Inputs


@dataclass(frozen=True, slots=True)
class ImpressionColumns:
    """Names of the event's columns. Those that may be None are not logged if they are None.

    `live_at_start`, `live_at_end`: versions that were live when the work on the request began and ended.
    """

    request_id: str = "request_id"
    candidates: str = "candidates"
    scores: str = "scores"
    model_version: str = "model_version"
    features: str = "features"
    shadow: str | None = "shadow_scores"
    live_at_start: str | None = None
    live_at_end: str | None = None


@dataclass(frozen=True, slots=True)
class Impression:
    """One answered request, in served order: candidates, scores (k,) and inputs of k rows."""

    request_id: str
    event_time_us: int
    entity: Mapping[str, int | str]
    candidates: Sequence[int | str]
    scores: NDArray[np.float32]
    model_version: int
    inputs: Inputs
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImpressionBatch:
    """The n answered requests of one model version, in columns, with k rows in all.

    Request i shows rows `picked[edges[i]:edges[i + 1]]` of `inputs`, in this order, which `scores` (k,) already have.
    `live`: versions that were live when the work began and ended.
    """

    request_ids: Sequence[str]
    times_us: Sequence[int]
    entities: Sequence[Mapping[str, int | str]]
    candidates: Sequence[Sequence[int | str]]
    scores: NDArray[np.float32]
    model_version: int
    inputs: Inputs
    picked: NDArray[np.int64]
    edges: NDArray[np.int64]
    contexts: Sequence[Mapping[str, Any]]
    live: tuple[int, int]

    @classmethod
    def of(cls, impression: Impression) -> Self:
        """Build a batch of one request."""
        rows = np.arange(len(impression.inputs))
        return cls(
            [impression.request_id],
            [impression.event_time_us],
            [impression.entity],
            [impression.candidates],
            impression.scores,
            impression.model_version,
            impression.inputs,
            rows,
            np.array([0, len(rows)]),
            [impression.context],
            (impression.model_version, impression.model_version),
        )

    def __len__(self) -> int:
        return len(self.request_ids)

    @property
    def size_bytes(self) -> int:
        """Estimated size in memory."""
        bags = [bag[:1] if _is_one(bag) else bag for bag in self.inputs.bags]
        arrays: list[NDArray[Any]] = [self.inputs.ids, self.inputs.dense, *bags]
        texts = sum(len(name) for names in self.candidates for name in names if isinstance(name, str))
        return sum(array.nbytes for array in arrays) + texts + 100 * len(self.picked) + 500 * len(self)

    def split(self) -> "list[ImpressionBatch]":
        """Split into batches of one request each."""
        parts = []
        for i in range(len(self)):
            rows, one = slice(self.edges[i], self.edges[i + 1]), slice(i, i + 1)
            parts.append(
                ImpressionBatch(
                    self.request_ids[one],
                    self.times_us[one],
                    self.entities[one],
                    self.candidates[one],
                    self.scores[rows],
                    self.model_version,
                    self.inputs,
                    self.picked[rows],
                    self.edges[i : i + 2] - self.edges[i],
                    self.contexts[one],
                    self.live,
                )
            )
        return parts


def _is_one(bag: NDArray[np.int64]) -> bool:
    return len(bag) > 0 and bag.strides[0] == 0
