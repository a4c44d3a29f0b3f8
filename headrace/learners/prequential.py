"""Prequential evaluation: metrics of predictions made before the model learned from the example.

The model's loss determines the metrics. A model of one probability has AUC, calibration and hit@k; a model of several
probabilities has them for each label; any other model has its mean loss.

Sums run in float64. AUC is computed in three ways: exactly over the last `window` rows; over all rows from a histogram
of logits, with a bound on its error; and exactly over all rows from the scores, up to `rows_max` rows.

Sources: Dawid (1984), "The Prequential Approach", JRSS A 147; Gama, Sebastiao, Rodrigues (2013), "On evaluating
stream learning algorithms", Machine Learning 90; AUC as the Mann-Whitney statistic, ties one half.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError, SnapshotError
from headrace.learners.labels.targets import check_starts
from headrace.learners.models.log_loss import EPS, LogLoss, log_losses
from headrace.learners.models.loss import Doubles, Floats, Loss
from headrace.learners.models.model import Model
from headrace.learners.models.per_label import PerLabel
from headrace.learners.state import prefixed
from headrace.learners.tables import kernels

ROWS_MAX = 20_000_000  # scores kept for the exact AUC, 5 bytes each
BINS = 8_192
LOGIT_MAX = 16.0  # outermost bins of the histogram
SLICES_MAX = 64

Figures = dict[str, Any]


def auc(scores: NDArray[np.floating[Any]], labels: NDArray[Any]) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2, of (n,) scores and 0/1 labels; NaN for one class.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    positive = labels > 0.5
    p = int(positive.sum())
    n = len(labels) - p
    if p == 0 or n == 0:
        return float("nan")
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mid_rank = last - (count - 1) / 2.0  # of equal scores, counted from 1
    return float((mid_rank[group[positive]].sum() - p * (p + 1) / 2.0) / (p * n))


class Prequential:
    """Streaming metrics of predictions made before learning from their labels.

    Args:
        model: the model that predicts; without it, predictions are of the one label of `loss`.
        loss: loss of one label, if there is no model; the default is log-loss.
        rows_max: number of scores kept for the exact AUC over all rows; beyond it, only the histogram's is available.
        window: rows of the recent metrics.
        top: the values of k in hit@k.
        slices: keep metrics per slice too; the first 64 slices get their own, later ones share "other".
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        loss: Loss | None = None,
        rows_max: int = ROWS_MAX,
        window: int = 10_000,
        top: tuple[int, ...] = (1, 5, 10),
        slices: bool = True,
    ) -> None:
        if window < 1 or rows_max < 0:
            raise DeclarationError(f"prequential figures: window={window}, rows_max={rows_max}; write at least 1 and 0")
        self._model = model
        self._loss: Loss = (loss or LogLoss()) if model is None else model.loss
        labels = 1 if model is None else model.labels
        losses: tuple[Loss, ...] = ()  # one for each of several labels
        if isinstance(self._loss, PerLabel):
            losses = self._loss.losses
        elif self._loss.is_binary and labels > 1:
            losses = (LogLoss(),) * labels
        self._by_label = [Prequential(loss=each, rows_max=rows_max, window=window, slices=False) for each in losses]
        self._is_probability = self._loss.is_binary and labels == 1
        self._rows_max = rows_max
        self._top = top
        self._slices: dict[str, Prequential] | None = {} if slices else None
        self._sums = np.zeros(6, dtype=np.float64)  # weight, loss, probability, label, rows, not finite
        self._histogram = np.zeros((2, BINS), dtype=np.int64)  # negatives, positives
        self._hits = np.zeros(1 + len(top), dtype=np.int64)  # requests with a positive, hits at each k
        self._scores = np.empty(1024, dtype=np.float32)
        self._labels = np.empty(1024, dtype=np.uint8)
        self._recent = np.zeros((2, window), dtype=np.float32)  # ring of probability, label; or of loss, zero

    def __len__(self) -> int:
        return int(self._sums[4])

    def observe(
        self,
        probabilities: NDArray[Any],
        labels: NDArray[Any],
        *,
        weights: NDArray[Any] | None = None,
        starts: NDArray[np.int64] | None = None,
        slices: NDArray[Any] | None = None,
    ) -> None:
        """Add n predictions.

        Args:
            probabilities: (n,) before learning, or predictions (n, K). A probability that is not finite counts as 0.5;
                an example with another prediction that is not finite is left out. Both are counted in `not_finite`.
            labels: (n,) 0 or 1, or the labels of the model, (n,) or (n, L), NaN for an unknown one of several.
            weights: (n,) importance in loss and calibration.
            starts: (requests + 1,) first row of each request, and n, for hit@k. Requests without a positive are
                skipped.
            slices: (n,) text or ints, the slice of each row.

        Raises:
            SchemaError: `starts` are not first rows of requests, or arrays differ in length.
        """
        for name, array in (("probabilities", probabilities), ("weights", weights), ("slices", slices)):
            if array is not None and len(array) != len(labels):
                raise SchemaError(f"prequential figures · {name}: {len(array)} rows, labels {len(labels)}")
        check_starts("prequential figures", starts, len(labels))
        if len(labels) == 0:
            return
        weight = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        finite = np.isfinite(probabilities).reshape(len(labels), -1).all(axis=1)
        self._sums[5] += len(finite) - int(finite.sum())
        if self._is_probability:
            filled = np.where(finite, probabilities, 0.5).astype(np.float32)
            self._observe_probabilities(filled, np.ascontiguousarray(labels, dtype=np.float32), weight, starts)
        else:
            self._observe_losses(probabilities[finite], labels[finite], weight[finite])
        for k, marks in enumerate(self._by_label):
            known = ~np.isnan(labels[:, k])
            if not known.any():
                continue
            column, label = np.ascontiguousarray(probabilities[known, k]), labels[known, k]
            marks.observe(column, label, weights=weight[known], starts=_starts_of(known, starts))
        if slices is not None and self._slices is not None:
            for value in np.unique(slices):
                rows = slices == value
                self._slice(str(value)).observe(probabilities[rows], labels[rows], weights=weight[rows])

    def _observe_probabilities(
        self, probabilities: Floats, labels: Floats, weight: Doubles, starts: NDArray[np.int64] | None
    ) -> None:
        loss = log_losses(probabilities, labels)
        sums = [weight.sum(), weight @ loss, weight @ probabilities, weight @ labels]
        self._sums[:4] += np.array(sums, dtype=np.float64)
        self._count_bins(probabilities, labels)
        self._remember_recent(probabilities, labels)
        self._remember_scores(probabilities, labels)
        self._sums[4] += len(labels)
        if starts is not None:
            self._count_hits(probabilities, labels, np.ascontiguousarray(starts, dtype=np.int64))

    def _observe_losses(self, predictions: NDArray[Any], labels: NDArray[Any], weight: Doubles) -> None:
        losses = self._loss.values(predictions, labels)
        self._sums[:2] += weight.sum(), weight @ losses
        self._remember_recent(losses.astype(np.float32), np.zeros(len(losses), np.float32))
        self._sums[4] += len(losses)

    def snapshot(self, *, exact: bool = False) -> Figures:
        """The metrics over all rows, `recent` over the window, several `labels` by index, `slices` by name.

        `logloss` in nats, `base_logloss` of the constant base rate, `calibration` = sum of probabilities / sum of
        labels, `auc` with its error bound `auc_error`. With `exact` and at most `rows_max` rows the AUC is exact, from
        a sort of all scores: about 0.1 s per million rows.
        """
        figures = self._pooled_figures(exact=exact) if self._is_probability else self._loss_figures()
        if self._hits[0]:
            figures["requests"] = int(self._hits[0])
            figures |= {f"hit@{k}": float(self._hits[1 + i] / self._hits[0]) for i, k in enumerate(self._top)}
        figures["recent"] = self._recent_figures()
        if self._by_label:
            figures["labels"] = {str(k): marks.snapshot(exact=exact) for k, marks in enumerate(self._by_label)}
        if self._slices:
            figures["slices"] = {name: each.snapshot(exact=exact) for name, each in sorted(self._slices.items())}
        return figures

    def _pooled_figures(self, *, exact: bool) -> Figures:
        weight, loss, probability, label, rows, not_finite = (float(value) for value in self._sums)
        area, error = self._histogram_auc()
        if exact and rows <= self._rows_max:
            area, error = auc(self._scores[: int(rows)], self._labels[: int(rows)]), 0.0
        return {
            "rows": int(rows),
            "positives": int(self._histogram[1].sum()),
            "not_finite": int(not_finite),
            "logloss": loss / weight if weight else float("nan"),
            "base_logloss": _entropy(label / weight if weight else 0.0),
            "calibration": probability / label if label else float("nan"),
            "auc": area,
            "auc_error": error,
        }

    def _loss_figures(self) -> Figures:
        weight, loss = float(self._sums[0]), float(self._sums[1])
        return {
            "rows": len(self),
            "not_finite": int(self._sums[5]),
            self._loss.name: loss / weight if weight else float("nan"),
        }

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All state as arrays."""
        scores = min(len(self), self._rows_max) if self._is_probability else 0
        arrays: dict[str, NDArray[Any]] = {
            "sums": self._sums.copy(),
            "histogram": self._histogram.copy(),
            "hits": self._hits.copy(),
            "scores": self._scores[:scores].copy(),
            "labels": self._labels[:scores].copy(),
            "recent": self._recent.copy(),
        }
        for name, each in (self._slices or {}).items():
            arrays |= {f"slice.{name}.{key}": array for key, array in each.state_dict().items()}
        for k, each in enumerate(self._by_label):
            arrays |= {f"label.{k}.{key}": array for key, array in each.state_dict().items()}
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load what `state_dict` returned.

        Raises:
            SnapshotError: it was saved with another window or other values of k.
        """
        if arrays["recent"].shape != self._recent.shape or arrays["hits"].shape != self._hits.shape:
            raise SnapshotError("prequential figures: saved with another window, or other k of hit@k")
        self._sums, self._histogram = np.array(arrays["sums"]), np.array(arrays["histogram"])
        self._hits, self._recent = np.array(arrays["hits"]), np.array(arrays["recent"])
        self._scores, self._labels = np.array(arrays["scores"]), np.array(arrays["labels"])
        names = {key.rpartition(".")[0] for key in prefixed(arrays, "slice.")}
        names -= {f"{name}.label.{k}" for name in names for k in range(len(self._by_label))}
        self._slices = None if self._slices is None else {}
        for name in sorted(names) if self._slices is not None else ():
            self._slice(name).load_state_dict(prefixed(arrays, f"slice.{name}."))
        for k, marks in enumerate(self._by_label):
            marks.load_state_dict(prefixed(arrays, f"label.{k}."))

    def _slice(self, name: str) -> "Prequential":
        assert self._slices is not None
        if name not in self._slices:
            name = name if len(self._slices) < SLICES_MAX else "other"
            fresh = Prequential(self._model, rows_max=self._rows_max // 8, window=1_000, top=self._top, slices=False)
            self._slices.setdefault(name, fresh)
        return self._slices[name]

    def _count_bins(self, probabilities: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        p = np.clip(probabilities.astype(np.float64), EPS, 1 - EPS)
        bins = ((np.log(p) - np.log1p(-p)) * (BINS / (2 * LOGIT_MAX)) + BINS / 2).astype(np.int64).clip(0, BINS - 1)
        kind = (labels > 0.5).astype(np.int64)
        self._histogram += np.bincount(kind * BINS + bins, minlength=2 * BINS).reshape(2, BINS)

    def _remember_recent(self, first: Floats, second: Floats) -> None:
        """Write the last rows of a batch to the window's ring buffer, at sequence number modulo its length."""
        window = self._recent.shape[1]
        slots = (len(self) + np.arange(len(first)))[-window:] % window
        if len(slots):
            self._recent[0, slots] = first[-len(slots) :]
            self._recent[1, slots] = second[-len(slots) :]

    def _remember_scores(self, probabilities: Floats, labels: Floats) -> None:
        """Keep scores for the exact AUC, up to `rows_max`; the arrays double as they fill."""
        start = len(self)
        end = min(start + len(labels), self._rows_max)
        if end <= start:
            return
        if end > len(self._scores):
            room = max(end, 2 * len(self._scores)) - len(self._scores)
            self._scores = np.concatenate([self._scores, np.empty(room, dtype=np.float32)])
            self._labels = np.concatenate([self._labels, np.empty(room, dtype=np.uint8)])
        self._scores[start:end] = probabilities[: end - start]
        self._labels[start:end] = labels[: end - start] > 0.5

    def _count_hits(
        self, probabilities: NDArray[np.float32], labels: NDArray[np.float32], starts: NDArray[np.int64]
    ) -> None:
        ranks = np.empty(len(starts) - 1, dtype=np.int64)
        kernels.best_ranks(probabilities, labels, starts, ranks)
        ranked = ranks[ranks >= 0]
        self._hits += [ranked.size, *(int((ranked < k).sum()) for k in self._top)]

    def _histogram_auc(self) -> tuple[float, float]:
        """AUC over all rows with pairs in one bin as ties, and half the share of such pairs, the error bound."""
        negatives, positives = self._histogram.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        if pairs == 0:
            return float("nan"), float("nan")
        below = np.cumsum(negatives) - negatives
        within = float(positives @ negatives)
        return float((positives @ below + within / 2.0) / pairs), float(within / 2.0 / pairs)

    def _recent_figures(self) -> Figures:
        probability, label = self._recent[:, : min(len(self), self._recent.shape[1])]
        if len(label) == 0:
            return {"rows": 0}
        if not self._is_probability:
            return {"rows": len(label), self._loss.name: float(probability.mean(dtype=np.float64))}
        positives = float(label.sum(dtype=np.float64))
        return {
            "rows": len(label),
            "logloss": float(log_losses(probability, label).mean()),
            "base_logloss": _entropy(positives / len(label)),
            "calibration": float(probability.sum(dtype=np.float64)) / positives if positives else float("nan"),
            "auc": auc(probability, label),
        }


def _starts_of(known: NDArray[np.bool_], starts: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """First row of each request, and the number of rows, when only the rows `known` (n,) are counted."""
    return None if starts is None else np.concatenate([[0], np.cumsum(known)])[starts]


def _entropy(rate: float) -> float:
    """Log-loss of the constant prediction `rate`, if it is the true rate."""
    p = np.array([0.0, 1.0])
    return float((log_losses(np.full(2, rate), p) * np.array([1 - rate, rate])).sum())
