"""Standardisation of numbers: statistics of the rows alone, missing values, outliers, drift."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import SnapshotError
from headrace.learners.standardizer import CLIP_SDS, MEMORY_ROWS, WARM_ROWS, Standardizer


def observed(values, *, cut=256):
    """A standardizer that has seen `values` (n,) or (n, D)."""
    x = np.asarray(values, np.float32)
    x = x[:, None] if x.ndim == 1 else x
    standardizer = Standardizer(x.shape[1])
    for start in range(0, len(x), cut):
        standardizer.observe(x[start : start + cut])
    return standardizer


@settings(max_examples=60)
@given(st.data())
def test_statistics_do_not_depend_on_how_rows_are_cut(data):
    seed, rows = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(0, 50, 4), rng.exponential(5.0, 4), (rows, 4)).astype(np.float32)
    x[rng.random(x.shape) < rng.choice([0.0, 0.3, 0.95])] = np.nan
    whole, cut = observed(x, cut=rows), observed(x, cut=data.draw(st.integers(1, rows)))
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(array, cut.state_dict()[name])


@settings(max_examples=30)
@given(st.integers(0, 999), st.floats(-1e6, 1e6), st.floats(1e-4, 1e4))
def test_mean_and_deviation_are_those_of_the_present_values(seed, mean, spread):
    rng, deviation = np.random.default_rng(seed), spread * max(abs(mean), 1.0)  # more than float32 tells apart
    values = rng.normal(mean, deviation, 4_000).astype(np.float32)
    holes = values.copy()
    holes[rng.random(4_000) < 0.3] = np.nan
    present = values[~np.isnan(holes)].astype(np.float64)
    standardizer = observed(holes)
    assert standardizer.mean[0] == pytest.approx(present.mean(), rel=1e-6, abs=1e-6 * deviation)
    assert standardizer.var[0] == pytest.approx(present.var(), rel=1e-6)


def test_a_missing_number_is_the_mean_and_says_so():
    standardizer = observed(np.random.default_rng(0).normal(100, 1, 1_000))
    out = standardizer.transform(np.array([[np.nan], [100.0], [103.0]], np.float32))
    assert out[0].tolist() == [0.0, 1.0]
    assert out[1, 0] == pytest.approx(0.0, abs=0.1)
    assert out[2, 0] == pytest.approx(3.0, abs=0.3)
    assert out[1:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("outlier", [1e9, -1e9, 1e25, float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 10, WARM_ROWS, 500])
def test_one_outlier_leaves_the_scale_as_it_is(outlier, at):
    values = np.random.default_rng(1).normal(0, 1, 3_000)
    values[at] = outlier
    standardizer = observed(values)
    assert 0.9 < np.sqrt(standardizer.var[0]) < 1.3
    out = standardizer.transform(np.array([[outlier], [1.0]], np.float32))
    assert abs(out[0, 0]) == CLIP_SDS
    assert 0.7 < out[1, 0] < 1.2


def test_a_sparse_feature_keeps_its_scale():
    rng = np.random.default_rng(2)
    values = np.where(rng.random(20_000) < 0.01, rng.normal(50, 5, 20_000), 0.0)
    standardizer = observed(values)
    assert np.sqrt(standardizer.var[0]) == pytest.approx(values.std(), rel=0.2)


@pytest.mark.parametrize("first", [1e9, 1.0])
def test_a_feature_that_was_constant_takes_the_scale_of_what_follows(first):
    rng = np.random.default_rng(3)
    values = np.concatenate([np.zeros(1_000), [first], np.where(rng.random(5_000) < 0.1, 1.0, 0.0)])
    standardizer = observed(values)
    assert 0.1 < np.sqrt(standardizer.var[0]) < 1.0
    assert Standardizer(1).transform(np.full((1, 1), 5.0, np.float32)).tolist() == [[0.0, 0.0]]
    assert observed(np.full(100, 7.1)).transform(np.full((1, 1), 7.1, np.float32)).tolist() == [[0.0, 0.0]]


def test_a_change_of_scale_is_followed_and_old_rows_are_forgotten():
    rng = np.random.default_rng(4)
    before, after = rng.normal(0, 1, 50_000), rng.normal(0, 1_000, 20_000)
    assert np.sqrt(observed(np.concatenate([before, after])).var[0]) > 300
    standardizer = observed(np.concatenate([np.full(MEMORY_ROWS, -1.0), np.full(MEMORY_ROWS, 1.0)]), cut=4_096)
    assert standardizer.mean[0] == pytest.approx(1 - 2 / np.e, abs=0.01)


def test_state_round_trips_and_other_widths_are_refused():
    rng = np.random.default_rng(5)
    x = rng.normal(3, 2, (200, 3)).astype(np.float32)
    whole, first, second = (Standardizer(3) for _ in range(3))
    whole.observe(x)
    first.observe(x[:50])
    second.load_state_dict(first.state_dict())
    second.observe(x[50:])
    for name, array in whole.state_dict().items():
        assert array.tobytes() == second.state_dict()[name].tobytes()
    with pytest.raises(SnapshotError, match=r"wanted shape \(2,\)"):
        Standardizer(2).load_state_dict(whole.state_dict())
