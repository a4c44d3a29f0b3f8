import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DecodeError, SchemaError
from headrace.learners import PAD, Inputs

FINGERPRINT = "00000000deadbeef"
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-200, 200), st.just(PAD))


@st.composite
def inputs(draw):
    rows = draw(st.integers(0, 5))
    ids = np.array(draw(st.lists(IDS, min_size=rows * 3, max_size=rows * 3)), dtype=np.int64).reshape(rows, 3)
    bag = np.array(draw(st.lists(IDS, min_size=rows * 2, max_size=rows * 2)), dtype=np.int64).reshape(rows, 2)
    shared = np.broadcast_to(np.array(draw(st.lists(IDS, min_size=4, max_size=4)), dtype=np.int64), (rows, 4))
    number = st.floats(width=32, allow_nan=False)
    dense = np.array(draw(st.lists(number, min_size=rows * 2, max_size=rows * 2)), dtype=np.float32).reshape(rows, 2)
    if draw(st.booleans()) and rows:
        ids[:, 0], dense[:, 1] = ids[0, 0], dense[0, 1]
    return Inputs(ids, (bag, shared), dense, FINGERPRINT)


def same(one, other):
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.dense.view(np.int32), other.dense.view(np.int32))
    for a, b in zip(one.bags, other.bags, strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=150)
@given(inputs())
def test_packing_and_unpacking_gives_the_same_bits(batch):
    same(Inputs.from_bytes(batch.to_bytes(), FINGERPRINT), batch)


@settings(max_examples=100)
@given(inputs(), st.lists(st.integers(0, 6), max_size=4), st.randoms(use_true_random=False))
def test_requests_are_packed_from_rows_of_one_batch(batch, counts, random):
    """Each as it would be packed alone, whichever rows it takes and in whatever order."""
    if not len(batch):
        counts = [0] * len(counts)
    edges = np.cumsum([0, *counts])
    picked = np.array([random.randrange(len(batch)) for _ in range(edges[-1])], dtype=np.int64)
    packed = batch.pack_each(picked, edges)
    assert len(packed) == len(counts)
    for i, data in enumerate(packed):
        rows = batch.take(picked[edges[i] : edges[i + 1]])
        assert data == rows.to_bytes()
        same(Inputs.from_bytes(data, FINGERPRINT), rows)


def wide(rows):
    ids = np.stack([np.arange(rows), np.full(rows, 2**40)], axis=1).astype(np.int64)
    bag = np.broadcast_to(np.arange(50, dtype=np.int64) + 2**33, (rows, 50))
    dense = np.ascontiguousarray(np.broadcast_to(np.arange(8, dtype=np.float32), (rows, 8)))
    return Inputs(ids, (bag,), dense, FINGERPRINT)


def test_what_all_rows_share_is_stored_once():
    one, many = len(wide(1).to_bytes()), len(wide(1_001).to_bytes())
    assert many - one <= 2 * 1_001  # only the first id differs, in two bytes a row


def test_a_shared_bag_comes_back_as_a_view_of_one_row():
    assert Inputs.from_bytes(wide(100).to_bytes()).bags[0].strides[0] == 0


def test_every_truncation_is_refused():
    data = wide(3).to_bytes()
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            Inputs.from_bytes(data[:length])
    with pytest.raises(DecodeError, match="too many"):
        Inputs.from_bytes(data + b"x")


def test_bytes_that_are_something_else_are_refused():
    with pytest.raises(DecodeError, match="not a packed request"):
        Inputs.from_bytes(b"x" * 100)


def test_another_spec_is_named():
    with pytest.raises(SchemaError, match="00000000deadbeef"):
        Inputs.from_bytes(wide(2).to_bytes(), "0" * 15 + "1")


def test_concat_is_the_inverse_of_take():
    batch = wide(10)
    same(Inputs.concat([batch.take(slice(0, 4)), batch.take(np.arange(4, 10))]), batch)
    same(batch.take(np.arange(10) % 2 == 0), batch.take(slice(0, 10, 2)))


def test_concat_of_different_specs_is_refused():
    other = Inputs(np.zeros((1, 1), np.int64), (), np.zeros((1, 1), np.float32), "0" * 16)
    with pytest.raises(SchemaError, match="concat"):
        Inputs.concat([wide(1), other])
    with pytest.raises(SchemaError, match="concat"):
        Inputs.concat([])
