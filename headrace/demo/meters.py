"""The demo's measurements, based on the broker's log, the models' manifests and the answers of serving.

- Event to served model: an event is learned in the first version whose manifest's offsets are beyond it, and served
  with the first answer of that version or a later one.
- Mixed versions: an answer is of one version if the model it names computes the logged scores from the logged inputs.
- Parity: online reads during the run are compared with a replay of the broker's log up to the offsets of each read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features import FeatureView, plan_of
from headrace.features.keys import entity_ids, shard_of
from headrace.features.store import OnlineStore
from headrace.history.verify import compare
from headrace.learners import Inputs, Learner
from headrace.learners.publishing.directory import ModelDirectory
from headrace.learners.publishing.scorer import Scorer

RATE_S = 5.0  # span of the rates on the screen
SCORE_TOLERANCE = 1e-5  # float32 sums of one row in batches of different sizes


class Rate:
    """Increase per second of a count, over the whole intervals between its writes in the last `span_s`.

    A count that another process writes occasionally does not change between two writes, so a rate since the last check
    would alternate between 0 and twice the true value.
    """

    def __init__(self, span_s: float = RATE_S) -> None:
        self._span_us = span_s * 1e6
        self._writes: list[tuple[int, int]] = []  # (wall time in µs, count), one at or before the span, the rest in it

    def add(self, count: int, written_us: int) -> None:
        """Add a count written at `written_us`; a count that was already added is ignored."""
        if self._writes and written_us <= self._writes[-1][0]:
            return
        self._writes.append((written_us, count))
        while len(self._writes) > 2 and self._writes[1][0] <= written_us - self._span_us:
            del self._writes[0]

    @property
    def per_s(self) -> float:
        """The rate per second; 0 before the second write."""
        if len(self._writes) < 2:
            return 0.0
        (first_us, first), (last_us, last) = self._writes[0], self._writes[-1]
        return (last - first) / (last_us - first_us) * 1e6


@dataclass(frozen=True, slots=True)
class OnlineRead:
    """Records of one shard, from the store when the shard was at `offsets`, read as of `now_us`."""

    view: type[FeatureView]
    texts: list[bytes]
    blobs: list[bytes | None]
    offsets: Mapping[str, int]
    now_us: int


class Reads:
    """A collector of online reads of random shards and entities."""

    def __init__(
        self, store: OnlineStore, views: Sequence[type[FeatureView]], frame: pl.DataFrame, *, each: int, seed: int
    ) -> None:
        """`frame` has the entities of all views; `each` is the number of records per read."""
        self.taken: list[OnlineRead] = []
        self._store = store
        self._each = each
        self._rng = np.random.default_rng(seed)
        self._entities: list[tuple[type[FeatureView], NDArray[np.int64], list[bytes]]] = []
        for view in views:
            plan = plan_of(view)
            keys = frame.select(plan.entity).drop_nulls().unique(maintain_order=True)
            ids, texts = entity_ids(plan, keys)
            self._entities.append((view, shard_of(ids, store.shards), texts))

    def take(self, now_us: int) -> None:
        """Read each view once."""
        for view, shards, texts in self._entities:
            shard = int(self._rng.choice(shards))
            members = np.flatnonzero(shards == shard)
            chosen = self._rng.choice(members, min(self._each, len(members)), replace=False)
            asked = [texts[index] for index in chosen]
            offsets, blobs = self._store.snapshot(plan_of(view), shard, asked)
            self.taken.append(OnlineRead(view, asked, blobs, offsets, now_us))


@dataclass(slots=True)
class Parity:
    """Number of compared values, and number of differing values."""

    checked: int = 0
    mismatches: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


def parity(reads: Iterable[OnlineRead], log: pl.DataFrame) -> Parity:
    """Compare the reads with replays of `log`, a frame of events with `_partition` and `_offset`."""
    result = Parity()
    for read in reads:
        plan = plan_of(read.view)
        keys = pl.concat_str([pl.col(name).cast(pl.String) for name in plan.entity], separator="\x1f")
        events = log.filter(keys.is_in([text.decode() for text in read.texts]))
        comparison = compare(plan, read.offsets, read.texts, read.blobs, events, read.now_us)
        result.checked += int(comparison.features["checked"].sum())
        result.mismatches += comparison.mismatches
        result.examples += comparison.examples.to_dicts()
    return result


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A model that answered requests: offsets up to which it was trained, and wall time in µs of its first answer."""

    offsets: Mapping[str, int]
    first_answer_us: int


def event_to_served_s(
    appended: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]], served: Sequence[ServedVersion]
) -> NDArray[np.float64]:
    """Seconds from each event's append to the first answer of a model that had learned from it.

    Args:
        appended: partition -> offsets of its events (n,) ascending, and their append wall times (n,) in µs.
        served: versions that answered requests.

    Returns:
        (m,), one for each event from which a served version had learned.
    """
    spans = []
    for partition, (offsets, times_us) in appended.items():
        done = 0
        for model in sorted(served, key=lambda model: model.first_answer_us):
            through = int(np.searchsorted(offsets, model.offsets.get(partition, 0)))
            if through > done:
                spans.append((model.first_answer_us - times_us[done:through]) / 1e6)
                done = through
    return np.concatenate(spans) if spans else np.empty(0)


def mixed_versions(impressions: pl.DataFrame, directory: ModelDirectory, learner: type[Learner]) -> int:
    """Count the answers whose scores differ from those of the model that they name.

    `impressions` has the columns `model_version`, `features` (packed inputs) and `scores`.
    """
    mixed = 0
    for (version,), group in impressions.partition_by("model_version", as_dict=True).items():
        scorer = Scorer(directory.load(int(version), learner), learner)
        for packed, logged in zip(group["features"], group["scores"], strict=True):
            again = scorer.score(Inputs.from_bytes(packed, learner.inputs.fingerprint))
            mixed += not np.allclose(again, logged.to_numpy(), rtol=0, atol=SCORE_TOLERANCE)
    return mixed


def spread(values: Sequence[float] | NDArray[np.float64], *percents: int) -> dict[str, float | None]:
    """Percentiles by name, None without values.

    >>> spread([1.0, 2.0, 3.0], 50)
    {'p50': 2.0}
    """
    if len(values) == 0:
        return {f"p{percent}": None for percent in percents}
    return {f"p{percent}": round(float(np.percentile(values, percent)), 4) for percent in percents}
