"""Fences: the position of each shard of a view, and atomic writes that advance it.

A fence is a hash: a sequence number, the token of its last writer, and the next offset of every source partition. A
write compares the fence with the one that the writer left there. Only if they agree does it write records, offsets and
the next sequence number together: on a single server in a transaction for several shards; on a cluster, where no
transaction spans shards and all nodes work in parallel, in a script per shard. A record costs Redis half as much in a
transaction as in a script, 2 us instead of 4 (measured). But a transaction needs an extra query for its guards, so
several shards share one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import hiredis
import numpy as np
from numpy.typing import NDArray

from headrace.errors import FencedError, StoreError
from headrace.features.state.slab import Slab
from headrace.features.store.link import RedisLink, Script
from headrace.features.store.transactions import Guarded, Held, Packed
from headrace.features.store.wire import LENGTH_MAX, put_records
from headrace.features.view import ViewPlan
from headrace.kernels.spans import Spans, spans_of

FENCED, APPLIED, REPEATED = 0, 1, 2
"""Outcome of a write: rejected, since the fence is another writer's; applied; already applied by an earlier try."""
Outcome: TypeAlias = tuple[int, int, str]
"""The outcome, and the sequence and writer that the fence shows."""

TOGETHER_MAX = 1_024
"""Records in one transaction, which blocks Redis for about a millisecond; a larger shard gets its own transaction."""
PIECE_MAX = 512
"""Records packed and sent at a time: Redis reads them while the next ones are packed."""

# ARGV: expected sequence, next sequence, expected writer, writer, ttl in ms or 0, number of offset fields and values,
# the offset fields and values, the records. unpack() is limited to some 8,000 values, hence the loops.
_FLUSH = Script(
    "flush",
    """
local held = redis.call('HMGET', KEYS[1], 'sequence', 'writer')
local sequence, writer = held[1] or '0', held[2] or ''
if sequence == ARGV[2] and writer == ARGV[4] then return {2, sequence, writer} end
if sequence ~= ARGV[1] or writer ~= ARGV[3] then return {0, sequence, writer} end
local ttl, first = ARGV[5], 7 + tonumber(ARGV[6])
redis.call('HSET', KEYS[1], 'sequence', ARGV[2], 'writer', ARGV[4])
for i = 7, first - 1, 2000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 1999, first - 1)))
end
if ttl == '0' then
  local pairs, n = {}, 0
  for i = 2, #KEYS do
    pairs[n + 1], pairs[n + 2], n = KEYS[i], ARGV[first + i - 2], n + 2
    if n == 4000 or i == #KEYS then
      redis.call('MSET', unpack(pairs, 1, n))
      n = 0
    end
  end
else
  for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[first + i - 2], 'PX', ttl) end
end
return {1, ARGV[2], ARGV[4]}
""",
)


@dataclass(frozen=True, slots=True)
class Fence:
    """The position of a shard of a view. `offsets`: partition -> next offset to apply. Sequence 0: never written.

    `starts`: partition of a topic -> the first offset that was applied, if it is known. It is not known after a
    hand-over, nor if an earlier release wrote the fence.
    """

    sequence: int = 0
    writer: str = ""
    offsets: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardWrite:
    """One shard's part of a flush: the fence that the writer expects, and what to write.

    `expected_writer` is the token on the fence that the writer loaded; None means `writer` itself, or nobody at
    sequence 0. `offsets` and `starts` need only the partitions whose values changed. `blobs` are the records of
    `texts`, or a function that returns the records [begin, end): Redis then reads some while the next are packed.
    """

    shard: int
    expected_sequence: int
    writer: str
    texts: Sequence[bytes]
    blobs: Sequence[bytes] | Callable[[int, int], Sequence[bytes]]
    offsets: Mapping[str, int]
    expected_writer: str | None = None
    starts: Mapping[str, int] = field(default_factory=dict)

    @property
    def expected(self) -> tuple[int, str]:
        """The sequence and writer that the fence must show."""
        if self.expected_writer is not None:
            return self.expected_sequence, self.expected_writer
        return self.expected_sequence, self.writer if self.expected_sequence else ""


class Packing:
    """Records of a slab for `ShardWrite.blobs`, packed a few hundred at a time to amortise the cost of a call.

    rows (n,) are the slab rows, sequences (n,) those of their shards' flush, and `texts` (n,) their keys.
    """

    def __init__(self, slab: Slab, rows: NDArray[np.int64], sequences: NDArray[np.int64], arrival_us: int) -> None:
        self.texts = spans_of(slab.key_texts(rows))
        self._rows = rows
        self._slab = slab
        self._sequences = sequences
        self._arrival_us = arrival_us
        self._packed, self._begin, self._end = Spans(np.zeros(0, np.uint8), np.zeros(1, np.int64)), 0, 0

    def part(self, shard_begin: int, begin: int, end: int) -> Spans:
        """Records [begin, end), counted from row `shard_begin`. Fastest when called in ascending order."""
        begin, end = shard_begin + begin, shard_begin + end
        if not self._begin <= begin <= end <= self._end:
            self._begin, self._end = begin, max(end, min(begin + PIECE_MAX, len(self._rows)))
            cut = slice(self._begin, self._end)
            self._packed = self._slab.pack_spans(self._rows[cut], self._sequences[cut], self._arrival_us)
        return self._packed.part(begin - self._begin, end - self._begin)


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The result of a flush. `sequences`: shard -> its new sequence number.

    `repeated`: shards whose fence already showed this writer and the new sequence, because an earlier try was applied
    although its reply was lost. The records of this try were not written again.
    """

    sequences: dict[int, int]
    repeated: frozenset[int]


def write_shards(
    link: RedisLink, prefix_of: Callable[[int], bytes], ttl_ms: int, writes: Sequence[ShardWrite]
) -> list[Outcome]:
    """Apply each write whose fence is as expected. `prefix_of` returns the key prefix of a shard.

    Raises:
        StoreUnavailableError: Redis does not answer; which writes were applied is unknown.
        StoreError: Redis rejected a write.
    """
    if not link.cluster:
        return [each for group in _by_transactions(link, prefix_of, ttl_ms, _groups(writes)) for each in group]
    replies = link.run(_FLUSH, (_script_call(write, prefix_of(write.shard), ttl_ms) for write in writes))
    return [(int(state), *_shown([sequence, writer])) for state, sequence, writer in replies]


def fence_key(prefix: bytes) -> bytes:
    """Key of a shard's fence."""
    return prefix + b"!fence"


def fence_of(fields: Mapping[bytes, bytes]) -> Fence:
    """Parse the hash of a fence.

    Raises:
        StoreError: it holds what the engine does not write.
    """
    try:
        offsets, starts = (
            {name[2:].decode(): int(value) for name, value in fields.items() if name.startswith(kind)}
            for kind in (b"o:", b"s:")
        )
    except ValueError as exc:
        raise StoreError(foreign("fence of a shard", exc)) from exc
    return Fence(*_shown([fields.get(b"sequence"), fields.get(b"writer")]), offsets, starts)


def foreign(what: str, exc: ValueError) -> str:
    """Message of a value in the store that the engine does not write."""
    return (
        f"{what}: not as Headrace writes it ({exc}): another program writes these keys, or they are damaged; use a "
        "namespace of its own (HEADRACE_NAMESPACE), or start a fresh store and backfill"
    )


def fenced(plan: ViewPlan, shard: int, expected: tuple[int, str], actual: tuple[int, str]) -> FencedError:
    """The error for a fence that shows a different (sequence, writer) than the engine expects."""
    return FencedError(
        f"view {plan.name} · shard {shard}: expected sequence {expected[0]} of writer {expected[1] or 'nobody'}, "
        f"found {actual[0]} of {actual[1] or 'nobody'}. Another engine owns the shard, or Redis lost data. "
        "Let one flow alone write the view; to go on with this one, start it again: it reads on from its offsets"
    )


def _groups(writes: Sequence[ShardWrite]) -> Iterator[list[ShardWrite]]:
    """Consecutive writes, grouped into transactions."""
    group: list[ShardWrite] = []
    size = 0
    for write in writes:
        if group and size + len(write.texts) > TOGETHER_MAX:
            yield group
            group, size = [], 0
        group.append(write)
        size += len(write.texts)
    if group:
        yield group


def _by_transactions(
    link: RedisLink, prefix_of: Callable[[int], bytes], ttl_ms: int, groups: Iterator[list[ShardWrite]]
) -> list[list[Outcome]]:
    made: list[list[ShardWrite]] = []

    def calls() -> Iterator[Guarded]:
        for group in groups:
            made.append(group)
            guards = [fence_key(prefix_of(write.shard)) for write in group]
            commands = partial(_commands, group, prefix_of, ttl_ms)
            yield Guarded(guards, ("sequence", "writer"), partial(_as_expected, group), commands)

    outcomes = []
    for group, (guard_fields, done) in zip(made, link.guarded("flush", calls()), strict=True):
        shown = [_shown(fields) for fields in guard_fields]
        if done:
            outcomes.append([(APPLIED, *each) for each in shown])
        elif len(group) > 1:  # one rejected shard must not block the others
            alone = _by_transactions(link, prefix_of, ttl_ms, ([write] for write in group))
            outcomes.append([outcome for [outcome] in alone])
        else:
            outcomes.append([_not_done(link, prefix_of, group[0], shown[0])])
    return outcomes


def _not_done(link: RedisLink, prefix_of: Callable[[int], bytes], write: ShardWrite, shown: tuple[int, str]) -> Outcome:
    if shown == write.expected:  # another writer advanced it between the query and EXEC
        [fence] = link.hashes([fence_key(prefix_of(write.shard))])
        shown = _shown([fence.get(b"sequence"), fence.get(b"writer")])
    is_repeated = shown == (write.expected_sequence + 1, write.writer)
    return REPEATED if is_repeated else FENCED, *shown


def _as_expected(group: Sequence[ShardWrite], guard_fields: Held) -> bool:
    return all(_shown(fields) == write.expected for write, fields in zip(group, guard_fields, strict=True))


def _shown(fields: Sequence[bytes | None]) -> tuple[int, str]:
    """Sequence and writer of a fence; (0, "") if it was never written.

    Raises:
        StoreError: it holds what the engine does not write.
    """
    try:
        return int(fields[0] or 0), (fields[1] or b"").decode()
    except ValueError as exc:
        raise StoreError(foreign("fence of a shard", exc)) from exc


def _commands(
    group: Sequence[ShardWrite], prefix_of: Callable[[int], bytes], ttl_ms: int
) -> tuple[Iterator[Packed], int]:
    """The group's packed commands, and their number; records are packed lazily."""
    count = sum(len(write.texts) for write in group)
    return _packed(group, prefix_of, ttl_ms, count), len(group) + (count if ttl_ms else min(count, 1))


def _packed(
    group: Sequence[ShardWrite], prefix_of: Callable[[int], bytes], ttl_ms: int, count: int
) -> Iterator[Packed]:
    for write in group:
        moved = ("sequence", write.expected_sequence + 1, "writer", write.writer, *_offsets(write))
        yield hiredis.pack_command(("HSET", fence_key(prefix_of(write.shard)), *moved))
    head = tail = b""
    if ttl_ms:
        head, tail = b"*5\r\n$3\r\nSET\r\n", b"$2\r\nPX\r\n$%d\r\n%d\r\n" % (len(str(ttl_ms)), ttl_ms)
    elif count:
        yield b"*%d\r\n$4\r\nMSET\r\n" % (2 * count + 1)
    for write in group:
        keys = spans_of(write.texts)
        for begin in range(0, len(keys), PIECE_MAX):
            end = min(begin + PIECE_MAX, len(keys))
            blobs = spans_of(_blobs(write, begin, end))
            yield _records(prefix_of(write.shard) + b":", keys.part(begin, end), blobs, head, tail)


def _records(prefix: bytes, texts: Spans, blobs: Spans, head: bytes, tail: bytes) -> memoryview:
    """Keys and records as packed arguments, each pair between `head` and `tail`."""
    size = sum(int(spans.offsets[-1] - spans.offsets[0]) for spans in (texts, blobs))
    size += (len(prefix) + len(head) + len(tail) + 2 * LENGTH_MAX) * len(texts)
    first, before, after = (np.frombuffer(bytearray(text), np.uint8) for text in (prefix, head, tail))
    out = np.empty(size, np.uint8)
    end = put_records(first, texts.data, texts.offsets, blobs.data, blobs.offsets, before, after, out)
    return out[:end].data


def _blobs(write: ShardWrite, begin: int, end: int) -> Sequence[bytes]:
    blobs = write.blobs(begin, end) if callable(write.blobs) else write.blobs[begin:end]
    assert len(blobs) == end - begin, f"shard {write.shard}: {len(blobs)} records for {end - begin} keys"
    return blobs


def _offsets(write: ShardWrite) -> list[Any]:
    """Offset fields of the fence, alternating names and values."""
    moved = [part for name, offset in write.offsets.items() for part in (f"o:{name}", offset)]
    return moved + [part for name, offset in write.starts.items() for part in (f"s:{name}", offset)]


def _script_call(write: ShardWrite, prefix: bytes, ttl_ms: int) -> tuple[list[bytes], list[Any]]:
    """Keys and arguments of the script; packs the records."""
    blobs, offsets = _blobs(write, 0, len(write.texts)), _offsets(write)
    sequence, writer = write.expected
    fence = [sequence, sequence + 1, writer, write.writer, ttl_ms, len(offsets)]
    return [fence_key(prefix), *(prefix + b":" + text for text in write.texts)], [*fence, *offsets, *blobs]
