"""The online store: records in Redis, written with the offsets that produced them.

Each shard of a view has a fence: a hash with a sequence number, the token of its last writer, and the next offset of
every source partition, for those of a topic also the first one. A flush is one atomic step per shard: it compares the
fence, writes the records and advances the fence. So records and offsets always agree, whichever process crashes, and a
second writer, or a Redis that went back in time, is detected at the next flush.

    <ns>:{<shard>}:<view>:<version>:<key text>       one packed record           {..} is the hash tag: a shard's keys
    <ns>:{<shard>}:<view>:<version>!fence            the fence of the shard          are in one slot of a cluster
    <ns>:views                                       view name -> active fingerprint
    <ns>:activated                                   versions that were active once, see versions.py
    <ns>:owners                                      view name -> module:Class, see versions.py
    <ns>:meta                                        shards: fixed when the namespace is first opened

A version is the first half of the fingerprint, since keys take much of the memory of a quiet entity.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, islice
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import StoreError
from headrace.features.answer import Answer
from headrace.features.keys import NULL_ID, shard_of
from headrace.features.state.record import PackedReader
from headrace.features.store.client import TIMEOUT_S
from headrace.features.store.eviction import EvictionCheck
from headrace.features.store.fences import (
    APPLIED,
    REPEATED,
    Fence,
    FlushReport,
    ShardWrite,
    fence_key,
    fence_of,
    fenced,
    foreign,
    write_shards,
)
from headrace.features.store.link import KEYS_MAX, RedisLink, Script
from headrace.features.store.reader import ViewRead, read_frame
from headrace.features.store.versions import ViewVersions
from headrace.features.store.wire import packed_mgets
from headrace.features.view import FeatureView, ViewPlan, plan_of, version_of
from headrace.kernels.spans import Values, values_of

SNAPSHOT_KEYS_MAX = 50_000
"""Maximum keys in one atomic snapshot: reading them blocks Redis for some 50 ms."""

_SNAPSHOT = Script(
    "snapshot",
    """
local records = {}
for i = 2, #KEYS do records[i - 1] = redis.call('GET', KEYS[i]) end
return {redis.call('HGETALL', KEYS[1]), records}
""",
)


class OnlineStore:
    """Records of views in one namespace of one Redis. Thread-safe.

    Open it with `OnlineStore.open`; close it, or use it as a context manager.
    """

    def __init__(
        self,
        link: RedisLink,
        shards: int,
        namespace: str,
        *,
        allow_eviction: bool = False,
        reads_replaced: bool = False,
    ) -> None:
        self.shards = shards
        self.namespace = namespace
        self._link = link
        self._reads_replaced = reads_replaced
        self._eviction = EvictionCheck(link, is_allowed=allow_eviction)
        self.views = ViewVersions(link, namespace)
        self._known_prefixes: dict[tuple[str, str], list[bytes]] = {}

    @classmethod
    def open(
        cls,
        url: str,
        shards: int = 32,
        namespace: str = "hr",
        *,
        allow_eviction: bool = False,
        reads_replaced: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Connect to `url` (`redis://`, `rediss://`, `unix://`, `redis+cluster://` for a node of a cluster).

        `shards` is fixed when a namespace is first opened, since it determines the key of each record.
        `allow_eviction`: write even if Redis may evict records, whose entities would then silently restart at 0.
        `reads_replaced`: also read a version of a view that another one has replaced, until it is dropped. This is for
        a process whose model needs it.
        `timeout_s`: time-out of a command, after which Redis counts as unavailable.

        Raises:
            StoreUnavailableError: Redis does not answer.
            StoreError: `url` does not identify a Redis; the namespace has another number of shards, or its name has
                characters other than letters, digits and `_.-`.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", namespace):
            raise StoreError(f"namespace {namespace!r}: use letters, digits, underscore, dot and hyphen")
        if not 1 <= shards <= 16_384:
            raise StoreError(f"shards = {shards}: use 1 to 16384; 32 suits most stores")
        link = RedisLink(url, timeout_s=timeout_s)
        try:
            _agree_on_shards(link, namespace, shards)
        except BaseException:
            link.close()
            raise
        return cls(link, shards, namespace, allow_eviction=allow_eviction, reads_replaced=reads_replaced)

    def close(self) -> None:
        """Close all connections."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of the store, without a password."""
        return self._link.shown_url

    def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        with self._link.errors("ping"):
            self._link.client.ping()

    # Reading

    def read(
        self,
        view: type[FeatureView],
        entities: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any],
        now: datetime | str | int | None = None,
    ) -> pl.DataFrame:
        """Read the features of `entities` as of `now` (None: the wall clock; ISO 8601; an int is µs UTC), in order.

        Fields of the request that the view declares are further columns of `entities`. A list of keys has none, so the
        features that need them are null.

        Columns: the entity's, the features (short names), `_status` and `_age_s` (now minus the newest event time, in
        seconds, at least 0; null if missing). The status is "fresh", "missing" (no record, or a damaged one, which is
        counted), or "ahead": the record holds an event at or after `now`, which some of its values may include
        (docs/views.md says which).

        Raises:
            SpineError: an entity column is missing or has another type.
            LayoutError: the view was changed and its new version is not active yet.
            StoreUnavailableError: Redis does not answer.
        """
        return read_frame(plan_of(view), entities, now, self.answer)

    def answer(
        self,
        plan: ViewPlan,
        ids: NDArray[np.int64],
        texts: Sequence[bytes],
        now_us: int,
        request: Mapping[str, pl.Series] | None = None,
        *,
        close: bool = False,
    ) -> Answer:
        """Read the features of the entities `ids` (n,) with key `texts` as of `now_us` as numeric columns, for serving.

        A record that cannot be read, because it is damaged or has another layout, is counted, and its entity is treated
        as missing. One round trip; a single server gets MGETs of up to `PART_KEYS` keys. `request`: fields of the
        request, (n,); without it, features that need one have no value. `close`: lists may be contiguous, as a data
        frame stores them; see `Lists`.

        Raises:
            LayoutError: the view was changed and its new version is not active yet.
            StoreUnavailableError: Redis does not answer.
        """
        return self.answers([ViewRead(plan, ids, texts, now_us)], request, close=close)[0]

    def answers(
        self,
        reads: Sequence[ViewRead],
        request: Mapping[str, pl.Series] | None = None,
        *,
        close: bool = False,
        deadline_s: float | None = None,
    ) -> list[Answer]:
        """Answer `reads` of several views in one round trip; each result is that of `answer`.

        `deadline_s`: time of `time.monotonic` by which Redis must have answered; by default the store's time-out holds.

        Raises:
            LayoutError: a view was changed and its new version is not active yet.
            StoreUnavailableError: Redis does not answer, or not in time.
        """
        for read in reads:
            self.require_readable(read.plan, deadline_s)
        readers = [PackedReader(read.plan, len(read.ids), read.now_us, contiguous=close) for read in reads]
        if self._link.cluster:
            keys = [self._keys(read.plan, read.ids, read.texts) for read in reads]
            records = iter(self._link.mget([key for some in keys for key in some]))
            for reader, read in zip(readers, reads, strict=True):
                _add(reader, read.ids, 0, values_of(list(islice(records, len(read.ids)))))
        else:
            packed = [packed_mgets(self._prefixes(read.plan), read.ids, read.texts) for read in reads]
            starts = [
                (reader, read.ids, end - count)
                for reader, read, (_, counts) in zip(readers, reads, packed, strict=True)
                for end, count in zip(accumulate(counts), counts, strict=True)
            ]
            requests = [request for requests, _ in packed for request in requests]
            replies = self._link.values(requests, [count for _, counts in packed for count in counts], deadline_s)
            for values, (reader, ids, start) in zip(replies, starts, strict=True):
                _add(reader, ids, start, values)
        for reader, read in zip(readers, reads, strict=True):
            reader.count_damaged(read.texts)
        return [reader.answer(request) for reader in readers]

    def records(self, plan: ViewPlan, ids: NDArray[np.int64], texts: Sequence[bytes]) -> list[bytes | None]:
        """The packed record of each entity, None without a record or with a null key. Any version can be read.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        records = self._link.mget(self._keys(plan, ids, texts))
        for index in np.flatnonzero(ids == NULL_ID).tolist():
            records[index] = None  # it shares the empty text with the entity ""
        return records

    def scan(self, plan: ViewPlan) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (key text, record) of every entity of the view's version, in arbitrary order.

        Entities written or removed meanwhile may be included or not, and an entity may occur twice.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        keys = self.views.scan_records(plan)
        while part := list(islice(keys, KEYS_MAX)):
            for key, record in zip(part, self._link.mget(part), strict=True):
                if record is not None:
                    yield key.split(b":", 4)[4], record

    def snapshot(self, plan: ViewPlan, shard: int, texts: Sequence[bytes]) -> tuple[dict[str, int], list[bytes | None]]:
        """Read (offsets, records) atomically: the records of `texts`, entities of `shard`, at those offsets.

        Raises:
            StoreError: more than `SNAPSHOT_KEYS_MAX` texts.
            StoreUnavailableError: Redis does not answer.
        """
        if len(texts) > SNAPSHOT_KEYS_MAX:
            raise StoreError(f"snapshot of {len(texts)} keys: at most {SNAPSHOT_KEYS_MAX} at one moment")
        prefix = self._prefix(plan, shard)
        keys = [fence_key(self._prefix(plan, shard)), *(prefix + b":" + text for text in texts)]
        [(flat, records)] = self._link.run(_SNAPSHOT, [(keys, ())])
        return fence_of(dict(zip(flat[::2], flat[1::2], strict=True))).offsets, records

    # Writing

    def fence(self, plan: ViewPlan, shard: int) -> Fence:
        """The fence of one shard."""
        return self.fences(plan, [shard])[shard]

    def fences(self, plan: ViewPlan, shards: Sequence[int]) -> dict[int, Fence]:
        """The fences of `shards`, in one round trip.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        return self.fences_of(plan.name, plan.fingerprint, shards)

    def fences_of(self, view_name: str, fingerprint: str, shards: Sequence[int]) -> dict[int, Fence]:
        """The fences of `shards` of any version of a view, in one round trip.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        prefixes = [_prefix(self.namespace, shard, view_name, version_of(fingerprint)) for shard in shards]
        hashes = self._link.hashes([fence_key(prefix) for prefix in prefixes])
        return {shard: fence_of(fields) for shard, fields in zip(shards, hashes, strict=True)}

    def flush(self, plan: ViewPlan, writes: Sequence[ShardWrite]) -> FlushReport:
        """Apply each write whose shard's fence is as expected: in transactions, on a cluster in scripts.

        Each shard is all or nothing. After `StoreUnavailableError` the outcome is unknown: call again with the same
        sequences and writers, and writes that had been applied are recognised (`FlushReport.repeated`).

        Raises:
            FencedError: another writer advanced a shard, or Redis went back in time. Other shards may have been
                written.
            StoreUnavailableError: Redis does not answer.
            EvictionError: see `require_kept`; nothing was written.
            StoreError: Redis rejected a write, for instance for lack of memory.
        """
        self.require_kept(plan)
        outcomes = write_shards(self._link, functools.partial(self._prefix, plan), _ttl_ms(plan), writes)
        for write, (state, sequence, writer) in zip(writes, outcomes, strict=True):
            if state not in {APPLIED, REPEATED}:
                raise fenced(plan, write.shard, write.expected, (sequence, writer))
        return FlushReport(
            {write.shard: write.expected_sequence + 1 for write in writes},
            frozenset(write.shard for write, (state, *_) in zip(writes, outcomes, strict=True) if state == REPEATED),
        )

    def require_kept(self, plan: ViewPlan) -> None:
        """Check that Redis keeps the view's records until their ttl; asks Redis at most every `EVICTION_S` seconds.

        If the user lacks the permission, or a managed Redis hides the setting, a warning is logged once.

        Raises:
            EvictionError: its maxmemory-policy may drop records, and the store was not opened with `allow_eviction`.
            StoreUnavailableError: Redis does not answer.
        """
        self._eviction.require_kept(plan.name)

    # Versions of views (`versions.ViewVersions` documents the rules)

    def active(self, view_name: str) -> str | None:
        """Fingerprint of the version that readers of the view get; None before anything was materialized."""
        return self.views.active(view_name)

    def activate(self, plan: ViewPlan) -> None:
        """Make this version the one that readers of the view get; other processes notice in `ACTIVE_S_MAX` seconds.

        Raises:
            LayoutError: another class owns the view's name.
            StoreUnavailableError: Redis does not answer.
        """
        self.views.activate(plan)

    def register(self, plan: ViewPlan) -> bool:
        """Activate the view's version if none is active; returns whether it is now the active one.

        Raises:
            EvictionError: see `require_kept`.
            LayoutError: another class owns the view's name.
            StoreUnavailableError: Redis does not answer.
            StoreError: since the store was opened, Redis was emptied and then opened with another number of shards.
        """
        self.require_kept(plan)
        _agree_on_shards(self._link, self.namespace, self.shards)
        return self.views.register(plan)

    def adopt(self, plan: ViewPlan) -> str | None:
        """Make the view's class the owner of its name; returns the previous owner, None if there was none.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        return self.views.adopt(plan)

    def drop(self, view_name: str, fingerprint: str) -> int:
        """Delete the records and fences of a version of a view; returns the number of keys.

        Raises:
            StoreError: readers get this version.
            StoreUnavailableError: Redis does not answer; call again.
        """
        return self.views.delete(view_name, fingerprint)

    def require_shards(self) -> None:
        """Check that the namespace still has the number of shards that it was opened with, or none yet.

        Raises:
            StoreError: Redis was emptied since, and then opened with another number of shards.
            StoreUnavailableError: Redis does not answer.
        """
        _require_shards(self._link, self.namespace, self.shards)

    def require_active(self, plan: ViewPlan) -> None:
        """Raise `LayoutError` unless this version of the view is active, or none is yet."""
        self.views.require_active(plan)

    def require_readable(self, plan: ViewPlan, deadline_s: float | None = None) -> bool:
        """Check that this store may read this version of the view; returns whether another version has replaced it.

        `deadline_s`: time of `time.monotonic` by which Redis must have answered.

        Raises:
            LayoutError: another version is active, and the store was not opened with `reads_replaced`, or this version
                was never active or has been dropped.
            StoreUnavailableError: Redis does not answer.
        """
        if self._reads_replaced:
            return self.views.require_readable(plan, deadline_s)
        self.views.require_active(plan, deadline_s)
        return False

    def _keys(self, plan: ViewPlan, ids: NDArray[np.int64], texts: Sequence[bytes]) -> list[bytes]:
        prefix = self._prefixes(plan)
        return [prefix[shard] + text for shard, text in zip(shard_of(ids, self.shards).tolist(), texts, strict=True)]

    def _prefixes(self, plan: ViewPlan) -> list[bytes]:
        """Key prefix of the records of each shard."""
        version = plan.name, plan.version
        if version not in self._known_prefixes:
            self._known_prefixes[version] = [self._prefix(plan, shard) + b":" for shard in range(self.shards)]
        return self._known_prefixes[version]

    def _prefix(self, plan: ViewPlan, shard: int) -> bytes:
        return _prefix(self.namespace, shard, plan.name, plan.version)


def _prefix(namespace: str, shard: int, view_name: str, version: str) -> bytes:
    """Key prefix of a version of a view in a shard."""
    return f"{namespace}:{{{shard}}}:{view_name}:{version}".encode()


def _agree_on_shards(link: RedisLink, namespace: str, shards: int) -> None:
    """Fix the number of shards of a new namespace, and check that of an existing one.

    Raises:
        StoreError: the namespace has another number of shards.
    """
    with link.errors("opening the store"):
        link.client.hsetnx(f"{namespace}:meta", "shards", shards)
    _require_shards(link, namespace, shards)


def _require_shards(link: RedisLink, namespace: str, shards: int) -> None:
    """Check the number of shards of a namespace that has one.

    Raises:
        StoreError: the namespace has another number of shards.
    """
    with link.errors("reading the number of shards"):
        stored = link.client.hget(f"{namespace}:meta", "shards")
    try:
        shards_before = shards if stored is None else int(stored)
    except ValueError as exc:
        raise StoreError(foreign(f"store {link.shown_url}, {namespace}:meta", exc)) from exc
    if shards_before != shards:
        raise StoreError(
            f"store {link.shown_url}, namespace {namespace!r}: it was made with shards = {shards_before}, "
            f"not {shards}; open it with {shards_before}, or use another namespace and backfill"
        )


def _ttl_ms(plan: ViewPlan) -> int:
    return max(1, plan.ttl_us // 1_000) if plan.ttl_us else 0


def _add(reader: PackedReader, ids: NDArray[np.int64], start: int, values: Values) -> None:
    """Pass the records of the entities from `start` on to `reader`; a null key has no record."""
    values.starts[ids[start : start + len(values.starts)] == NULL_ID] = -1  # its empty text is also that of entity ""
    reader.add(start, values)
