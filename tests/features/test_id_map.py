"""The id map against a dict, and hashes against the published algorithms."""

import random
from datetime import UTC, datetime

import numpy as np
import polars as pl
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import FeatureView, IdMap, LastN, hash_text, plan_of, shard_of
from headrace.kernels.hashing import mix, splitmix64
from headrace.kernels.texts import TextPool
from headrace.schemas import Event


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_adds_finds_and_removes_like_a_dict(seed):
    """Clustered ids, so that lines collide; rows in use are never handed out twice."""
    rng = random.Random(seed)
    pool = [rng.choice([i, -i, i << 40, 2**63 - 1 - i, -(2**63) + i]) for i in range(60)]
    ours, truth = IdMap(1), {}
    for _ in range(30):
        ids = np.array(rng.choices(pool, k=rng.randrange(40)), np.int64)
        if rng.random() < 0.6:
            rows, is_new = ours.get_or_add(ids)
            for found, row, new in zip(ids.tolist(), rows.tolist(), is_new.tolist(), strict=True):
                assert new == (found not in truth)
                assert truth.setdefault(found, row) == row
        else:
            freed = ours.remove(ids)
            assert sorted(freed.tolist()) == sorted(truth.pop(found) for found in set(ids.tolist()) if found in truth)
        assert len(ours) == len(truth) == len(set(truth.values()))
        assert ours.get(np.array(pool, np.int64)).tolist() == [truth.get(found, -1) for found in pool]
        assert ours.high > max(truth.values(), default=-1)
        held, rows = ours.items()
        assert dict(zip(held.tolist(), rows.tolist(), strict=True)) == truth
        assert rows.tolist() == sorted(rows.tolist())


def test_rows_are_dense_and_reused():
    """0, 1, 2, ...; a freed row goes first to the next newcomer."""
    ours = IdMap()
    rows, _ = ours.get_or_add(np.arange(100_000) * 3)
    assert rows.tolist() == list(range(100_000))
    ours.remove(np.array([3, 6]))
    assert sorted(ours.get_or_add(np.array([1, 2, 4]))[0].tolist()) == [1, 2, 100_000]


def test_text_hash_is_xxh64():
    """Every length around the block sizes, texts of several bytes a letter, slices, nulls."""
    texts = ["x" * n for n in range(70)] + ["é€😀" * n for n in range(12)] + [""]
    expected = [np.uint64(xxhash.xxh64_intdigest(text.encode())).astype(np.int64) for text in texts]
    assert hash_text(texts).tolist() == expected
    series = pl.Series(["skipped", *texts, None])[1:]
    assert hash_text(series).tolist() == [*expected, hash_text([""])[0]]
    assert hash_text([]).tolist() == []


class Numbered(Event, topic="numbered", key="user", time="at", id="number"):
    """An event whose id is a number."""

    number: int
    at: datetime
    user: int


class ByNumber(FeatureView, source=Numbered, entity="user"):
    """A view that needs ids."""

    newest = LastN("number", n=2)


def test_the_hash_of_a_number_is_xxh64_of_its_bytes():
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), *range(7, 1_000, 13)]
    frame = pl.DataFrame({"number": numbers, "at": [datetime(2024, 1, 1, tzinfo=UTC)] * len(numbers)}).with_columns(
        user=pl.lit(5)
    )
    seed = xxhash.xxh64_intdigest(b"Numbered")
    expected = [xxhash.xxh64_intdigest(number.to_bytes(8, "little", signed=True), seed=seed) for number in numbers]
    assert plan_of(ByNumber).rows(Numbered, frame).event_id.tolist() == expected


def test_splitmix_in_numpy_and_compiled_agree():
    """And shards are fixed for good: stored keys depend on them."""
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63)], np.int64)
    assert splitmix64(ids).tolist() == [int(mix(found)) for found in ids]
    assert shard_of(ids, 32).tolist() == [15, 1, 0, 7, 27]


def test_pool_gives_texts_back():
    """Also after growing; unknown hashes are null; texts are kept once."""
    pool = TextPool()
    texts = pl.Series([f"text {i % 5_000} {'é' * (i % 7)}" for i in range(20_000)])
    hashes = pool.intern(texts)
    assert pool.texts(hashes).equals(texts)
    assert len(pool) == texts.n_unique()
    assert pool.texts(np.array([1, hashes[3]])).to_list() == [None, texts[3]]
