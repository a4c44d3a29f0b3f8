"""Packed MGETs: the requests of a read, in parts, so that Redis works on the next part while one is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from headrace.features.keys import FEW, shard_of
from headrace.features.store.wire import LENGTH_MAX, put_keys
from headrace.features.view import ViewPlan
from headrace.kernels.spans import spans_of

PART_KEYS = 500
"""Keys in one MGET of a large read: Redis looks up the next part while one is decoded."""
FIRST_KEYS = 100, 200
"""Keys in the first MGETs of a large read, small so that decoding starts soon."""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """Entities of one view to read: ids (n,), their key texts, and the read time in microseconds, one or (n,) int64."""

    plan: ViewPlan
    ids: NDArray[np.int64]
    texts: Sequence[bytes]
    now_us: int | NDArray[np.int64]


def packed_mgets(
    prefixes: Sequence[bytes], ids: NDArray[np.int64], texts: Sequence[bytes]
) -> tuple[list[bytes], list[int]]:
    """Packed MGETs of up to `PART_KEYS` keys each, and the number of keys in each; prefixes are by shard."""
    shards = shard_of(ids, len(prefixes))
    if 0 < len(texts) <= FEW:  # a kernel call costs as much as a few keys
        keys_of_few = [prefixes[shard] + text for shard, text in zip(shards.tolist(), texts, strict=True)]
        packed_keys = b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys_of_few])
        return [b"*%d\r\n$4\r\nMGET\r\n%b" % (len(keys_of_few) + 1, packed_keys)], [len(keys_of_few)]
    keys, heads = spans_of(texts), spans_of(prefixes)
    out = np.empty(len(keys.data) + (len(prefixes[-1]) + LENGTH_MAX) * len(texts), np.uint8)
    ends = np.zeros(len(texts) + 1, np.int64)
    put_keys(heads.data, heads.offsets, shards, keys.data, keys.offsets, out, ends[1:])
    packed = out[: ends[-1]].tobytes()
    starts = [0, *accumulate(FIRST_KEYS)] if len(texts) > PART_KEYS else [0]
    cuts = [*starts[:-1], *range(starts[-1], len(texts), PART_KEYS), len(texts)]
    counts = [end - start for start, end in pairwise(cuts)]
    names = {count: b"*%d\r\n$4\r\nMGET\r\n" % (count + 1) for count in set(counts)}
    parts = [packed[begin:end] for begin, end in pairwise(ends[cuts].tolist())]
    return [names[count] + part for count, part in zip(counts, parts, strict=True)], counts
