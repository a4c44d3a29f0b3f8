import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DeclarationError, SnapshotError
from headrace.learners import RecentPopularity, log_rate


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_negatives_do_not_depend_on_how_the_stream_is_cut(values, data):
    values = np.array(values)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values)), max_size=6)) | {len(values)})
    whole = RecentPopularity(10, seed=3).draw(values, 4)
    sampler, parts = RecentPopularity(10, seed=3), []
    for start, end in zip([0, *cuts], cuts, strict=False):
        parts.append(sampler.draw(values[start:end], 4))
    np.testing.assert_array_equal(whole.values, np.concatenate([part.values for part in parts]))
    np.testing.assert_array_equal(whole.valid, np.concatenate([part.valid for part in parts]))
    for i, positive in enumerate(values):
        before = set(values[max(0, i - 10) : i])
        drawn = set(whole.values[i][whole.valid[i]])
        assert drawn <= before - {positive}
        if before <= {positive}:
            assert not drawn


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 30))
def test_popularity_is_counted_in_the_window_before_each_positive(values, capacity, cut):
    sampler = RecentPopularity(capacity, seed=3)
    drawn = [sampler.draw(np.array(values[at : at + cut], object), 2) for at in range(0, len(values), cut)]
    for i, positive in enumerate(values):
        before = values[max(0, i - capacity) : i]
        kinds = len(set(before)) + 1
        part, row = drawn[i // cut], i % cut
        shown = [positive, *part.values[row]]
        for j, value in enumerate(shown):
            if j == 0 or part.valid[row, j - 1]:
                q = (before.count(value) + 1) / (len(before) + kinds)
                assert part.log_popularity[row, j] == pytest.approx(np.log(q * kinds))


def test_values_that_left_the_window_cost_no_memory():
    sampler = RecentPopularity(100)
    for start in range(0, 50_000, 50):
        sampler.draw(np.arange(start, start + 50), 1)
    assert sum(array.nbytes for array in sampler.state_dict().values()) < 1_000
    assert len(sampler._counts) < 1_000


def test_draws_follow_recent_popularity():
    rng = np.random.default_rng(0)
    sampler = RecentPopularity(20_000, seed=1)
    sampler.draw(np.full(30_000, 9), 1)  # forgotten, all but the newest
    history = rng.choice(4, 20_000, p=[0.5, 0.3, 0.15, 0.05])
    sampler.draw(history, 1)
    drawn = sampler.draw(np.full(1, 77), 40_000).values[0]
    shares = np.bincount(drawn, minlength=10) / 40_000
    np.testing.assert_allclose(shares[:4], np.bincount(history) / 20_000, atol=0.01)
    assert shares[9] == 0


def test_text_and_state_round_trip():
    for values in (np.array(["a", "b", "c", "b"], dtype=object), np.array([1, 2, 3, 2])):
        whole, first, second = (RecentPopularity(8, seed=5) for _ in range(3))
        many = np.tile(values, 5)
        wanted = whole.draw(many, 3)
        first.draw(many[:7], 3)
        second.load_state_dict(first.state_dict())
        got = second.draw(many[7:], 3)
        assert (got.values == wanted.values[7:]).all()
        with pytest.raises(SnapshotError, match="capacity"):
            RecentPopularity(9).load_state_dict(first.state_dict())
    fresh = RecentPopularity(8)
    fresh.load_state_dict(RecentPopularity(8).state_dict())
    assert fresh.seen == 0


def test_log_rate_is_the_ratio_of_odds():
    assert log_rate(9, 9) == 0
    assert log_rate(9, 99) == pytest.approx(np.log(11))
    with pytest.raises(DeclarationError):
        log_rate(0, 1)
    with pytest.raises(DeclarationError):
        RecentPopularity(0)
