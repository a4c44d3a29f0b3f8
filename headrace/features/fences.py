"""Fences: where each shard of a view stands, and writes that move it on, all or nothing.

A fence is a hash: a sequence number, the token of its last writer, and the next offset of every source partition. A
write is one script a shard, which compares the fence with what the writer left there, and only then writes records,
offsets and the next sequence number together. The scripts of a flush follow each other without a wait: WATCH and EXEC
instead, a question a shard, took Redis a third of the time a record, and values were half as fresh (measured).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from headrace.errors import FencedError
from headrace.features.redis_link import RedisLink, Script

if TYPE_CHECKING:
    from headrace.features.view import ViewPlan

APPLIED, REPEATED = 1, 2
"""What became of a write: done, or done by an earlier try whose answer was lost; else the fence is another's."""
Outcome: TypeAlias = tuple[int, int, str]
"""One of these or 0, and the sequence and writer that the fence showed."""

# ARGV: expected sequence, the next one, expected writer, writer, ttl in ms or 0, number of offset fields and values,
# then these, then the records. unpack() is limited to some 8,000 values, hence the steps.
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
    """Where a shard of a view stands. `offsets`: partition -> next offset to apply. Sequence 0: never written."""

    sequence: int = 0
    writer: str = ""
    offsets: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardWrite:
    """One shard's part of a flush: the fence as the writer knows it, and what to write.

    `expected_writer` is the token on the fence that the writer loaded; None means `writer` itself, or nobody at
    sequence 0. `offsets` need only hold partitions that moved. `blobs` are the records of `texts`, or what makes them:
    then Redis writes one shard while the next one is packed.
    """

    shard: int
    expected_sequence: int
    writer: str
    texts: Sequence[bytes]
    blobs: Sequence[bytes] | Callable[[], Sequence[bytes]]
    offsets: Mapping[str, int]
    expected_writer: str | None = None

    @property
    def expected(self) -> tuple[int, str]:
        """Sequence and writer that the fence must show."""
        if self.expected_writer is not None:
            return self.expected_sequence, self.expected_writer
        return self.expected_sequence, self.writer if self.expected_sequence else ""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What a flush did. `sequences`: shard -> its new sequence number.

    `repeated`: shards whose fence already showed this writer and the new sequence, because an earlier try had been
    applied although its reply was lost. What this try carried was not written again.
    """

    sequences: dict[int, int]
    repeated: frozenset[int]


def write_shards(
    link: RedisLink, prefix_of: Callable[[int], bytes], ttl_ms: int, writes: Sequence[ShardWrite]
) -> list[Outcome]:
    """Carry out each write if its fence is as expected. `prefix_of` a shard is what its keys begin with.

    Raises:
        StoreUnavailableError: Redis does not answer; which writes were applied is unknown.
        StoreError: Redis refused.
    """
    replies = link.run(_FLUSH, (_script_call(write, prefix_of(write.shard), ttl_ms) for write in writes))
    return [(int(state), int(sequence), writer.decode()) for state, sequence, writer in replies]


def fence_key(prefix: bytes) -> bytes:
    """Key of a shard's fence."""
    return prefix + b"!fence"


def fence_of(held: Mapping[bytes, bytes]) -> Fence:
    """The fence that a hash holds."""
    offsets = {name[2:].decode(): int(value) for name, value in held.items() if name.startswith(b"o:")}
    return Fence(int(held.get(b"sequence", 0)), held.get(b"writer", b"").decode(), offsets)


def fenced(plan: "ViewPlan", shard: int, expected: tuple[int, str], found: tuple[int, str]) -> FencedError:
    """The error of an engine whose shard's fence shows another (sequence, writer) than it left there."""
    return FencedError(
        f"view {plan.name} · shard {shard}: expected sequence {expected[0]} of writer {expected[1] or 'nobody'}, "
        f"found {found[0]} of {found[1] or 'nobody'}. Another engine owns the shard, or Redis lost data: stop, open "
        "the shards again and replay from their offsets"
    )


def _script_call(write: ShardWrite, prefix: bytes, ttl_ms: int) -> tuple[list[bytes], list[Any]]:
    """Keys and arguments of the script; the records are made only now."""
    blobs = write.blobs() if callable(write.blobs) else write.blobs
    assert len(write.texts) == len(blobs), f"shard {write.shard}: {len(write.texts)} keys for {len(blobs)}"
    sequence, writer = write.expected
    offsets = [part for name, offset in write.offsets.items() for part in (f"o:{name}", offset)]
    fence = [sequence, sequence + 1, writer, write.writer, ttl_ms, len(offsets)]
    return [fence_key(prefix), *(prefix + b":" + text for text in write.texts)], [*fence, *offsets, *blobs]
