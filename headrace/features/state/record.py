"""The record: one entity's state in one view, packed.

    version | sequence | newest event time | newest arrival | section of each group, in layout order
    | recent event ids, if the view has dedupe=

Apart from sequence and arrival, the bytes are a function of the set of the entity's events: empty tiles and tiles that
have left their window are not written, and data that two groups share is written once. A quiet entity takes some tens
of bytes. Sections: rings/codec.py, lists/packing.py, tallies/codec.py, seen.py. Numbers: kernels/bit_columns.py and
varints.py.

    header    version, 4 bytes | varint sequence | time: varint 4 * zigzag(number) + unit
              | arrival: zigzag varint, after the time

The newest event time is counted in the largest of minutes, seconds, milliseconds and microseconds that divides it. 0
microseconds, which this rule never produces, stands for a record without events. The version is the first half of the
fingerprint.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import LayoutError
from headrace.features.answer import NEVER, Answer
from headrace.features.failure_counts import count_ahead, count_damaged
from headrace.features.state.blocks import BlockPool
from headrace.features.state.operations import Packed, PackedReads
from headrace.features.state.seen import SeenIds, skip_seen
from headrace.kernels.bit_columns import ROOM_BYTES, unit_of, unit_us
from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel
from headrace.kernels.spans import Spans, Values, values_of
from headrace.kernels.threads import run_all
from headrace.kernels.varints import get_half, get_signed, get_varint, put_half, put_signed, put_varint

if TYPE_CHECKING:
    from headrace.features.view import ViewPlan

VERSION_BYTES = 4
THREADS_MIN = 2_048
"""Minimum number of records to pack on several threads; for fewer, the hand-over costs more than it saves."""
BLOCK_ROWS = 1024
"""Records that a read unpacks at a time, so that their unpacked form stays in the CPU cache."""

_SECTION_BYTES = 64
"""Initial bytes for a group's section of a record; later what the largest batch of the view needed plus a quarter."""

_EMPTY = np.int64(NEVER)
_NO_ROWS = np.zeros(0, np.int64)
_NEEDED: dict[tuple[str, int], int] = {}
_SCRATCH = threading.local()


class DamagedError(LayoutError):
    """Records that cannot be read; `rows` (n,) marks them among those passed in."""

    def __init__(self, message: str, rows: NDArray[np.bool_]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a record, its first `size_bytes` bytes; times in microseconds UTC."""

    version: str
    sequence: int
    newest_us: int
    arrival_us: int
    size_bytes: int


def read_header(blob: bytes) -> Header:
    """Read the header of a packed record.

    Raises:
        LayoutError: `blob` is too short for a header.
    """
    heads, at = _heads(np.frombuffer(bytearray(blob), np.uint8), np.zeros(1, np.int64), np.array([len(blob)]))
    if at[0] < 0:
        raise LayoutError(f"record of {len(blob)} bytes: shorter than a header; it is damaged")
    version, sequence, newest_us, arrival_us = (int(field[0]) for field in heads)
    return Header(_hex(version), sequence, newest_us, arrival_us, int(at[0]))


def pack_records(
    plan: "ViewPlan",
    state: Sequence[BlockPool],
    newest_us: NDArray[np.int64],
    rows: NDArray[np.int64],
    sequences: NDArray[np.int64],
    arrival_us: int,
    seen: SeenIds | None = None,
) -> Spans:
    """Pack rows (n,) into records, with sequences (n,) in their headers.

    newest_us (rows of the state,) are the newest event times; `seen` are the recent event ids of a view with dedupe=.
    """
    newest = newest_us[rows]
    packers = [partial(pack_heads, _signed(plan.version), sequences, newest, arrival_us)]
    packers += [partial(group.pack, pool, base, rows, newest) for group, pool, base in plan.layout.with_bases(state)]
    if seen is not None:
        packers.append(partial(seen.pack, rows, newest))
    works = [partial(_room_for, plan, number, len(rows), pack) for number, pack in enumerate(packers)]
    sections = run_all(works) if len(rows) >= THREADS_MIN else [work() for work in works]
    offsets = sum((edges for _, edges in sections), np.zeros(len(rows) + 1, np.int64))
    out, at = np.empty(int(offsets[-1]), np.uint8), offsets[:-1].copy()
    for part, edges in sections:
        join_sections(part, edges[:-1], edges[1:], out, at)
    assert (at == offsets[1:]).all(), f"view {plan.name}: the sections do not fill their records"
    return Spans(out, offsets)


def unpack_records(
    plan: "ViewPlan",
    state: Sequence[BlockPool],
    newest_us: NDArray[np.int64],
    rows: NDArray[np.int64],
    blobs: Values,
    seen: SeenIds | None = None,
    readings: Sequence[PackedReads | None] | None = None,
) -> None:
    """Fill empty rows (n,) of the state from packed records, none of them missing.

    newest_us (rows of the state,) gets their newest event times. Without `seen`, the recent event ids are skipped: only
    a slab that applies events needs them. With `readings`, one per group, the reads are answered, and only rows that
    other groups refer to are filled.

    Raises:
        DamagedError: records were written by another version of the view, or are damaged.
    """
    data, ends = blobs.data, blobs.ends
    (versions, _, newest, _), at = _heads(data, blobs.starts, ends)
    others = versions != _signed(plan.version)
    if others.any():
        first = int(others.argmax())
        if ends[first] - blobs.starts[first] < VERSION_BYTES:
            raise _damaged(plan, others)
        raise DamagedError(
            f"view {plan.name}: a record has layout {_hex(int(versions[first]))}, this declaration is {plan.version}: "
            "the view was changed; backfill the new version, then switch to it",
            others,
        )
    newest_us[rows] = newest
    packed = Packed(rows, newest, data, at, ends)
    for (group, pool, base), reading in zip(
        plan.layout.with_bases(state), readings or [None] * len(state), strict=True
    ):
        group.unpack(pool, base, packed, reading)
    if seen is not None:
        seen.unpack(packed)
    elif plan.layout.dedupe_us:
        skip_seen(data, at, ends)
    if (at != ends).any():
        raise _damaged(plan, at != ends)


def read_packed(
    plan: "ViewPlan",
    ids: NDArray[np.int64],
    texts: Sequence[bytes],
    blobs: Sequence[bytes | None],
    now_us: int | NDArray[np.int64],
    request: Mapping[str, pl.Series] | None = None,
    *,
    skips_damaged: bool = False,
) -> Answer:
    """Read the features of n entities as of `now_us` from their packed records; None is an entity without a record.

    ids (n,) and texts (n,) name the entities; the values depend only on the blobs. `request`: fields of the request,
    (n,). If `skips_damaged`, a record that cannot be read is counted, and its entity is treated as missing.

    Raises:
        DamagedError: a record was written by another version of the view, or is damaged.
    """
    assert len(ids) == len(texts) == len(blobs), f"{len(ids)} ids, {len(texts)} texts, {len(blobs)} records"
    reader = PackedReader(plan, len(blobs), now_us)
    reader.add(0, values_of(blobs))
    if reader.damage is not None and not skips_damaged:
        raise reader.damage
    reader.count_damaged(texts)
    return reader.answer(request)


class PackedReader:
    """Reads packed records of `count` entities, batch by batch, as of `now_us`: one time, or one per entity (count,).

    If `contiguous`, lists of the answer are stored without gaps where possible; see `Lists`.

    A record that cannot be read does not affect the others: its entity is treated as missing. `damaged` are the indexes
    of such entities; `damage` is the error of the first, None if there is none.
    """

    def __init__(
        self, plan: "ViewPlan", count: int, now_us: int | NDArray[np.int64], *, contiguous: bool = False
    ) -> None:
        self._plan = plan
        moments = np.full(count, now_us, np.int64) if isinstance(now_us, int) else now_us
        self._now_us = np.require(moments, np.int64, ["C", "W"])
        self._newest_us = np.full(count, NEVER, np.int64)
        self._outputs = plan.layout.outputs(count, contiguous=contiguous)
        self.damaged: list[int] = []
        self.damage: DamagedError | None = None

    def add(self, start: int, blobs: Values) -> None:
        """Read the next records, of the entities from `start` on; a missing value is an entity without a record."""
        present = np.flatnonzero(blobs.starts >= 0)
        # On one thread: Redis uses another core, and several threads of short kernels gained nothing (measured).
        for begin in range(0, len(present), BLOCK_ROWS):
            cut = present[begin : begin + BLOCK_ROWS]
            self._add_block(start + cut, Values(blobs.data, blobs.starts[cut], blobs.ends[cut]))

    def _add_block(self, reads: NDArray[np.int64], blobs: Values) -> None:
        """Read the records of the entities `reads` (m,)."""
        layout, (state, newest_us), rows = self._plan.layout, _scratch(self._plan), np.arange(len(reads))
        moments, bases = self._now_us[reads], {group.base for group in layout.groups}
        readings = [
            PackedReads(_NO_ROWS, _NO_ROWS, number in bases, out)
            if number in layout.unread
            else PackedReads(moments, reads, number in bases, out)
            for number, out in enumerate(self._outputs)
        ]
        for pool in state:
            pool.clear(rows)
        try:
            unpack_records(self._plan, state, newest_us, rows, blobs, readings=readings)
        except DamagedError as exc:
            self.damage = self.damage or exc
            self.damaged += reads[exc.rows].tolist()
            for number, (group, out) in enumerate(zip(layout.groups, self._outputs, strict=True)):
                if number not in layout.unread:
                    group.forget(out, reads)  # for all records of the block: which were answered is unknown
            whole = ~exc.rows
            if whole.any():
                self._add_block(reads[whole], Values(blobs.data, blobs.starts[whole], blobs.ends[whole]))
            return
        self._newest_us[reads] = newest_us[rows]

    def count_damaged(self, texts: Sequence[bytes]) -> None:
        """Count and log the records that could not be read; texts (count,) are the keys of all entities."""
        if self.damage is not None:
            count_damaged(self._plan.name, len(self.damaged), texts[self.damaged[0]], str(self.damage))

    def answer(self, request: Mapping[str, pl.Series] | None = None) -> Answer:
        """The features of all entities; `request`: fields of the request, (count,)."""
        answer = self._plan.layout.answer(self._outputs, self._newest_us, self._now_us, request)
        count_ahead(self._plan.name, answer)
        return answer


def _room_for(
    plan: "ViewPlan", number: int, count: int, pack: Callable[[NDArray[np.uint8], NDArray[np.int64]], None]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Run `pack` for `count` rows with enough room; returns the bytes and the edges (count + 1,) of the rows."""
    key, edges = (plan.fingerprint, number), np.zeros(count + 1, np.int64)
    out = np.empty(_NEEDED.get(key, _SECTION_BYTES) * count + ROOM_BYTES, np.uint8)
    pack(out, edges[1:])
    need = int(edges[-1]) + ROOM_BYTES
    if need > len(out):
        _NEEDED[key] = need * 5 // (4 * count) + 1
        out = np.empty(need, np.uint8)
        pack(out, edges[1:])
    return out, edges


def _heads(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Versions, sequences, newest times and arrivals (4, n) of the records, and where each header ends, (n,)."""
    heads, at = np.empty((4, len(starts)), np.int64), starts.copy()
    unpack_heads(data, at, ends, *heads)
    return heads, at


def _signed(version: str) -> int:
    return int(np.uint32(int(version, 16)).view(np.int32))


def _hex(version: int) -> str:
    return f"{version & (2**32 - 1):08x}"


def _scratch(plan: "ViewPlan") -> tuple[list[BlockPool], NDArray[np.int64]]:
    """This thread's scratch state for BLOCK_ROWS unpacked records of the view."""
    states: dict[str, tuple[list[BlockPool], NDArray[np.int64]]] = _SCRATCH.__dict__.setdefault("states", {})
    if plan.fingerprint not in states:
        states[plan.fingerprint] = (plan.layout.make(BLOCK_ROWS), np.full(BLOCK_ROWS, NEVER, np.int64))
    return states[plan.fingerprint]


def _damaged(plan: "ViewPlan", rows: NDArray[np.bool_]) -> DamagedError:
    first = int(rows.argmax())
    return DamagedError(
        f"view {plan.name}: record {first} of the batch is damaged; delete it and replay its entity", rows
    )


@lean_kernel
def pack_heads(version: Int, sequences: Ints, newest: Ints, arrival: Int, out: Bytes, ends: Ints) -> None:
    """Write a header for each of sequences and newest (n,), one after the other; `ends` (n,) is where each ends."""
    position: Int = np.int64(0)
    for i in range(newest.size):
        position = put_half(out, position, version)
        position = put_varint(out, position, np.uint64(sequences[i]))
        if newest[i] == _EMPTY:
            position = put_signed(out, put_varint(out, position, np.uint64(0)), arrival)
        else:
            unit = unit_of(newest[i], 3)
            time = newest[i] // unit_us(unit)
            zigzag = np.uint64((time << np.int64(1)) ^ (time >> np.int64(63)))
            position = put_varint(out, position, (zigzag << np.uint64(2)) | np.uint64(unit))
            position = put_signed(out, position, arrival - newest[i])
        ends[i] = position


@lean_kernel
def unpack_heads(
    data: Bytes, at: Ints, ends: Ints, versions: Ints, sequences: Ints, newest: Ints, arrivals: Ints
) -> None:
    """Read the header at each `data[at[i]:ends[i]]` into arrays (n,); advances `at[i]`, to -1 if bytes are damaged."""
    for i in range(at.size):
        version, position = get_half(data, at[i], ends[i])
        sequence, position = get_varint(data, position, ends[i])
        number, position = get_varint(data, position, ends[i])
        unit, zigzag = np.int64(number & np.uint64(3)), number >> np.uint64(2)
        time = (np.int64(zigzag >> np.uint64(1)) ^ -np.int64(zigzag & np.uint64(1))) * unit_us(unit)
        after, position = get_signed(data, position, ends[i])
        versions[i], sequences[i] = version, np.int64(sequence)
        newest[i], arrivals[i] = time if number != np.uint64(0) else _EMPTY, time + after
        at[i] = position


@lean_kernel
def join_sections(parts: Bytes, starts: Ints, ends: Ints, out: Bytes, at: Ints) -> None:
    """Append the section `parts[starts[i]:ends[i]]` to record i at `out[at[i]:]`, and advance `at[i]` to its end."""
    for i in range(at.size):
        size = ends[i] - starts[i]
        copy_bytes(parts, starts[i], out, at[i], size)
        at[i] += size
