import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DeclarationError, SnapshotError
from headrace.learners import (
    PAD,
    Adagrad,
    Bag,
    Categorical,
    DeepFM,
    EmbeddingTable,
    Inputs,
    InputSpec,
    TablePolicy,
)
from headrace.learners.tables.embedding import TrainedLookup

DIM = 3


def table(**policy):
    return EmbeddingTable("book", DIM, Adagrad(), TablePolicy(**policy), seed=1)


def read(held, ids):
    """Rows (n, W) of ids, zeros without one."""
    rows = held.locate(np.array(ids, dtype=np.int64))
    out = np.zeros((len(ids), DIM + 1), np.float32)
    out[rows >= 0] = held.weights[rows[rows >= 0]]
    return out


def admit(held, ids, now_us=1):
    held.admit(np.array(ids, dtype=np.int64), now_us)


BATCHES = st.lists(st.lists(st.one_of(st.integers(0, 12), st.just(PAD)), max_size=8), max_size=12)


@settings(max_examples=80)
@given(BATCHES, st.integers(1, 3))
def test_admission_and_reads_equal_a_dict(batches, min_count):
    held, uses = table(min_count=min_count), {}
    for now_us, batch in enumerate(batches):
        admit(held, batch, now_us)
        for each in batch:
            if each != PAD:
                uses[each] = uses.get(each, 0) + 1
    present = {each for each, count in uses.items() if count >= min_count}
    ids = [*range(13), PAD]
    assert [row >= 0 for row in held.locate(np.array(ids))] == [each in present for each in ids]
    assert len(held) == len(present)
    fresh = table()
    admit(fresh, sorted(present, reverse=True))
    np.testing.assert_array_equal(read(held, ids), read(fresh, ids))


def test_first_vectors_depend_on_id_and_seed_alone():
    one, other = table(), table()
    admit(one, range(100))
    for each in reversed(range(100)):
        admit(other, [each])
    np.testing.assert_array_equal(read(one, range(100)), read(other, range(100)))
    apart = EmbeddingTable("book", DIM, Adagrad(), seed=2)
    admit(apart, range(100))
    assert (read(apart, range(100))[:, :DIM] != read(one, range(100))[:, :DIM]).all()
    values = read(one, range(100))
    assert np.abs(values).max() <= TablePolicy().init_scale
    assert abs(values[:, :DIM].mean()) < 0.003
    assert (values[:, DIM] == 0).all()


def test_growing_keeps_every_row():
    held = table()
    admit(held, range(10))
    held.step(held.locate(np.arange(10)), np.ones((10, DIM + 1)))
    before = read(held, range(10))
    admit(held, range(10, 5_000))
    np.testing.assert_array_equal(read(held, range(10)), before)
    assert len(held) == 5_000


def test_the_budget_is_hard_and_the_oldest_go_first():
    held = table(rows_max=100)
    admit(held, range(100), 1)
    admit(held, range(50), 2)
    admit(held, range(1_000, 1_020), 3)
    assert len(held) <= 100
    assert (held.locate(np.arange(1_000, 1_020)) >= 0).all()
    assert (held.locate(np.arange(50)) >= 0).all()
    removed = np.flatnonzero(held.locate(np.arange(100)) < 0)
    assert removed.size == 120 - len(held)
    assert removed.tolist() == list(range(50, 50 + removed.size))  # of equally old ones the smaller ids
    admit(held, range(5_000, 6_000), 4)
    assert len(held) <= 100


def test_a_removed_id_starts_anew():
    held = table(expire_us=10)
    admit(held, [1, 2], 0)
    first = read(held, [1])
    held.step(held.locate(np.array([1])), np.ones((1, DIM + 1)))
    admit(held, [2], 100)
    assert held.expire(100) == 1
    assert held.locate(np.array([1, 2])).tolist()[0] == -1
    assert held.export()["ids"].tolist() == [2]
    admit(held, [1], 101)
    np.testing.assert_array_equal(read(held, [1]), first)
    assert held.state[held.locate(np.array([1]))[0]].tolist() == Adagrad().initial_state(DIM + 1).tolist()


def test_a_small_budget_keeps_the_newest_ids_batch_after_batch():
    held = table(rows_max=10)
    for start in range(0, 1_000, 5):
        admit(held, range(start, start + 5), start)
        assert held.export()["ids"].tolist() == list(range(max(start - 5, 0), start + 5))


def test_without_an_age_nothing_expires():
    held = table()
    admit(held, [1], 0)
    assert held.expire(2**60) == 0


def test_waiting_ids_are_bounded():
    held = table(min_count=2, rows_max=10)
    admit(held, [0], 0)
    admit(held, range(1, 11), 1)
    admit(held, [0], 2)  # was dropped as the least recently seen: counted from 1 again
    assert len(held) == 0
    admit(held, [0], 3)
    assert held.locate(np.array([0]))[0] >= 0


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_export_and_load_round_trip(with_optimizer):
    held = table(min_count=2)
    admit(held, [5, 5, 3, 3, 9], 7)
    held.step(held.locate(np.array([3, 5])), np.ones((2, DIM + 1)))
    arrays = held.export(with_optimizer=with_optimizer)
    assert arrays["ids"].tolist() == [3, 5]
    other = table(min_count=2)
    other.load(arrays)
    again = other.export(with_optimizer=with_optimizer)
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])
    if with_optimizer:
        admit(other, [9], 8)
        assert other.locate(np.array([9]))[0] >= 0
    assert held.nbytes > 0


def test_arrays_of_another_shape_are_refused():
    held = table()
    admit(held, [1])
    arrays = held.export(with_optimizer=True)
    with pytest.raises(SnapshotError, match="weights"):
        EmbeddingTable("book", DIM + 1, Adagrad()).load(arrays)
    with pytest.raises(SnapshotError, match="another optimizer"):
        table().load({**arrays, "state": np.zeros((1, 9), np.float32)})


def test_wrong_policies_are_refused():
    for wrong in ({"min_count": 0}, {"rows_max": 0}, {"expire_us": 0}):
        with pytest.raises(DeclarationError):
            TablePolicy(**wrong)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([{}, {"min_count": 2}, {"rows_max": 5}]))
def test_a_batch_admits_what_its_tables_admit_by_themselves(data, policy):
    """The compiled pass over all tables, beside each table's own `admit` of the ids that count as a use."""
    spec = InputSpec(
        Categorical("book"), Categorical("rival", table="book"), Categorical("shop"), Bag("bag", table="book", length=3)
    )
    kinds = {"book": TablePolicy(**policy), "shop": TablePolicy()}
    each, whole = ({name: EmbeddingTable(name, DIM, Adagrad(), kind) for name, kind in kinds.items()} for _ in range(2))
    model = DeepFM(dim=DIM, hidden=())
    lookup = TrainedLookup(spec, whole, model)
    for now_us in range(1, 4):
        rows, bound = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([9, 10**6]))
        drawn = np.array(data.draw(st.lists(st.integers(-1, bound), min_size=6 * rows, max_size=6 * rows)))
        drawn = np.where(drawn < 0, PAD, drawn).reshape(rows, 6)
        inputs = Inputs(drawn[:, :3].copy(), (drawn[:, 3:].copy(),), np.empty((rows, 0), np.float32))
        uses = lookup.admit(known := lookup.find(inputs), now_us)
        for name, positions in (("book", (0, 1, 3)), ("shop", (2,))):
            counted = []
            for position in positions:
                ids = known.ids[known.starts[position] : known.starts[position + 1]]
                is_repeated = np.append(False, ids[1:] == ids[:-1]) if position < 3 else np.zeros(len(ids), bool)
                counted.append(ids[~is_repeated])
            each[name].admit(np.concatenate(counted), now_us)
            for key, array in each[name].export(with_optimizer=True).items():
                np.testing.assert_array_equal(array, whole[name].export(with_optimizer=True)[key], err_msg=key)
        np.testing.assert_array_equal(uses.rows, lookup.find(inputs).rows)
