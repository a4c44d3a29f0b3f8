from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import SchemaError, SnapshotError
from headrace.learners import Drift, Prequential, SharedBottom, auc
from headrace.learners.prequential import log_losses

SCORES = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.7, 0.99]), st.booleans()), min_size=1, max_size=40)


def brute_auc(scores, labels):
    """Over all pairs of a positive and a negative."""
    wins, pairs = 0.0, 0
    for s, a in zip(scores, labels, strict=True):
        for t, b in zip(scores, labels, strict=True):
            if a and not b:
                pairs += 1
                wins += 1.0 if s > t else 0.5 if s == t else 0.0
    return wins / pairs if pairs else float("nan")


@settings(max_examples=150)
@given(SCORES)
def test_auc_equals_its_definition_over_pairs(rows):
    scores, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    np.testing.assert_allclose(auc(scores, labels), brute_auc(scores, labels), equal_nan=True)


def stream(rows=5_000, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 4, rows).astype(np.float32)
    return p, (rng.random(rows) < p).astype(np.float32)


def observe(marks, p, y, size=64, **extra):
    for start in range(0, len(p), size):
        marks.observe(p[start : start + size], y[start : start + size], **extra)


def test_figures_equal_their_definitions():
    p, y = stream()
    marks = Prequential(window=1_000)
    observe(marks, p, y)
    got = marks.snapshot(exact=True)
    base = y.mean()
    assert got["rows"] == 5_000
    assert got["positives"] == y.sum()
    assert got["logloss"] == pytest.approx(log_losses(p, y).mean())
    assert got["base_logloss"] == pytest.approx(-(base * np.log(base) + (1 - base) * np.log(1 - base)))
    assert got["calibration"] == pytest.approx(p.sum() / y.sum())
    assert (got["auc"], got["auc_error"]) == (pytest.approx(auc(p, y)), 0.0)
    recent = got["recent"]
    assert recent["rows"] == 1_000
    assert recent["auc"] == pytest.approx(auc(p[-1_000:], y[-1_000:]))
    assert recent["logloss"] == pytest.approx(log_losses(p[-1_000:], y[-1_000:]).mean())


def test_the_histograms_auc_is_within_the_error_it_states():
    p, y = stream()
    marks = Prequential(rows_max=100)
    observe(marks, p, y)
    for exact in (False, True):  # beyond rows_max there is no exact one
        got = marks.snapshot(exact=exact)
        assert 0 < got["auc_error"] < 1e-3
        assert abs(got["auc"] - auc(p, y)) <= got["auc_error"] + 1e-12


def test_weights_count_in_loss_and_calibration():
    p, y = stream(300)
    w = np.random.default_rng(1).random(300)
    marks = Prequential()
    marks.observe(p, y, weights=w)
    got = marks.snapshot()
    assert got["logloss"] == pytest.approx((w * log_losses(p, y)).sum() / w.sum())
    assert got["calibration"] == pytest.approx((w * p).sum() / (w * y).sum())


def brute_hits(p, y, starts, k):
    hits = total = 0
    for a, b in pairwise(starts):
        positives = [i for i in range(a, b) if y[i]]
        if positives:
            total += 1
            best = max(p[i] for i in positives)
            hits += sum(not y[i] and p[i] >= best for i in range(a, b)) < k
    return hits / total if total else None


@settings(max_examples=80)
@given(SCORES, st.data())
def test_hits_equal_their_definition(rows, data):
    p, y = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows])
    cuts = data.draw(st.sets(st.integers(1, len(rows)), max_size=5))
    starts = np.array(sorted({0, len(rows), *cuts}))
    marks = Prequential(top=(1, 3))
    marks.observe(p, y, starts=starts)
    got = marks.snapshot()
    assert (got.get("hit@1"), got.get("hit@3")) == (brute_hits(p, y, starts, 1), brute_hits(p, y, starts, 3))


def test_slices_are_marked_apart_and_bounded():
    p, y = stream(1_000)
    marks = Prequential()
    marks.observe(p, y, slices=np.where(p > 0.2, "high", "low"))
    got = marks.snapshot(exact=True)["slices"]
    assert got["high"]["rows"] == (p > 0.2).sum()
    assert got["low"]["auc"] == pytest.approx(auc(p[p <= 0.2], y[p <= 0.2]))
    marks.observe(p, y, slices=np.arange(1_000))
    assert len(marks.snapshot()["slices"]) == 65
    assert marks.snapshot()["slices"]["other"]["rows"] == 1_000 - 62


def test_nothing_seen_and_one_kind_only():
    marks = Prequential()
    got = marks.snapshot(exact=True)
    assert got["rows"] == 0
    assert np.isnan(got["auc"])
    assert got["recent"] == {"rows": 0}
    marks.observe(np.full(3, 0.5, np.float32), np.zeros(3))
    assert np.isnan(marks.snapshot(exact=True)["calibration"])


def test_no_rows_change_nothing():
    for model in (None, SharedBottom()):
        marks, columns = Prequential(model), () if model is None else (2,)
        marks.observe(np.empty((0, *columns)), np.empty((0, *columns)), starts=np.array([0]), slices=np.empty(0, int))
        assert marks.snapshot()["rows"] == 0


@pytest.mark.parametrize("name", ["probabilities", "weights", "slices"])
def test_arrays_of_another_length_are_refused(name):
    given = {"probabilities": np.zeros(3), "labels": np.zeros(3), name: np.zeros(2)}
    with pytest.raises(SchemaError, match=f"prequential figures · {name}: 2 rows, labels 3"):
        Prequential().observe(**given)


def test_a_certain_and_wrong_prediction_costs_a_finite_loss():
    assert np.isfinite(log_losses(np.array([0.0, 1.0], np.float32), np.array([1.0, 0.0]))).all()


def test_a_broken_prediction_is_counted_and_does_not_poison_the_figures():
    marks = Prequential()
    marks.observe(np.array([np.nan, 0.5, np.inf], np.float32), np.array([1.0, 0.0, 1.0]))
    got = marks.snapshot(exact=True)
    assert got["not_finite"] == 2
    assert got["logloss"] == pytest.approx(np.log(2))


def test_state_round_trip():
    p, y = stream(700)
    whole, first, second = (Prequential(window=100) for _ in range(3))
    slices = np.where(np.arange(700) % 2 == 0, "even", "odd")
    whole.observe(p, y, slices=slices)
    first.observe(p[:300], y[:300], slices=slices[:300])
    second.load_state_dict(first.state_dict())
    second.observe(p[300:], y[300:], slices=slices[300:])
    one, other = whole.snapshot(exact=True), second.snapshot(exact=True)
    assert one["auc"] == other["auc"]
    assert one["recent"] == other["recent"]
    assert one["slices"]["odd"]["auc"] == other["slices"]["odd"]["auc"]
    with pytest.raises(SnapshotError, match="another window"):
        Prequential(window=99).load_state_dict(first.state_dict())


def test_drift_of_the_losses_is_told():
    drift = Drift()
    rng = np.random.default_rng(0)
    assert not any(drift.update(0.3 + 0.01 * rng.normal()) for _ in range(500))
    assert any(drift.update(0.6 + 0.01 * rng.normal()) for _ in range(500))
    assert drift.alarms >= 1


@pytest.mark.parametrize("starts", [[0, 10**9, 4], [0, 3], [0, 4, 2, 4], [1, 4], []])
def test_first_rows_of_requests_that_are_none_are_refused(starts):
    """A kernel would read beyond its arrays."""
    marks = Prequential()
    with pytest.raises(SchemaError, match="prequential figures · starts .*: wanted first rows of requests"):
        marks.observe(np.full(4, 0.3), np.array([0, 1, 0, 1]), starts=np.array(starts, np.int64))
    assert len(marks) == 0
