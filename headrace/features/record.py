"""The record: one entity's state in one view, packed.

    u64 fingerprint | u64 sequence | i64 newest event time | i64 newest arrival | section of each group, in layout order
    | events that came lately, where the view has dedupe=

All little-endian. Apart from sequence and arrival the bytes follow from the set of the entity's events: tiles that have
left every window, and empty ones, are not written. A quiet entity costs some tens of bytes. Sections:
kernels/ring_codec.py, kernels/list_codec.py, kernels/tally_codec.py, kernels/seen_ids.py; numbers: kernels/varints.py.
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
from headrace.features.answer import NEVER, Answer, Lists
from headrace.features.kernels.ring_codec import join_sections
from headrace.features.layout import Operations, State
from headrace.features.seen_ids import SeenIds, skip_seen

if TYPE_CHECKING:
    from headrace.features.view import ViewPlan

__all__ = ["Answer", "Header", "Lists", "read_header", "read_packed"]

HEADER_BYTES = 32
BLOCK_ROWS = 256
"""Records that a read unpacks at a time, so that their dense form stays in the processor's cache."""

_SECTION_BYTES = 1_024
"""Room for a group's part of a record at first; grown where it is not enough."""

_SCRATCH = threading.local()
_HEADER_AT = np.arange(HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class Header:
    """What every record begins with; times in microseconds UTC."""

    fingerprint: str
    sequence: int
    newest_us: int
    arrival_us: int


def read_header(blob: bytes) -> Header:
    """The header of a packed record.

    Raises:
        LayoutError: too short to hold one.
    """
    if len(blob) < HEADER_BYTES:
        raise LayoutError(f"record of {len(blob)} bytes: shorter than a header; it is damaged")
    fingerprint, sequence, newest_us, arrival_us = np.frombuffer(blob, "<i8", 4).tolist()
    return Header(f"{fingerprint & (2**64 - 1):016x}", sequence, newest_us, arrival_us)


def pack_records(
    plan: "ViewPlan",
    state: Sequence[State],
    newest_us: NDArray[np.int64],
    rows: NDArray[np.int64],
    sequence: int,
    arrival_us: int,
    seen: SeenIds | None = None,
) -> list[bytes]:
    """Packed records of rows (n,); newest_us (rows of the state,), `seen` what a view with dedupe= remembers."""
    newest = newest_us[rows]
    parts = [partial(group.pack, arrays, rows, newest) for group, arrays in zip(plan.layout.groups, state, strict=True)]
    if seen is not None:
        parts.append(partial(seen.pack, rows, newest))
    sections = [_section(write, len(rows)) for write in parts]
    ends = np.cumsum(np.full(len(rows), HEADER_BYTES) + sum(np.diff(edges) for _, edges in sections))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(rows)]
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    header = np.empty((len(rows), 4), "<i8")
    header[:, 0] = np.uint64(int(plan.fingerprint, 16)).astype(np.int64)
    header[:, 1], header[:, 2], header[:, 3] = sequence, newest, arrival_us
    out[starts[:, None] + _HEADER_AT] = header.view(np.uint8)
    at = starts + HEADER_BYTES
    for part, edges in sections:
        join_sections(part, edges[:-1], edges[1:], out, at)
    assert (at == ends).all(), f"view {plan.name}: the sections do not fill their records"
    packed = out.tobytes()
    return [packed[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def unpack_records(
    plan: "ViewPlan",
    state: Sequence[State],
    newest_us: NDArray[np.int64],
    rows: NDArray[np.int64],
    blobs: Sequence[bytes],
    seen: SeenIds | None = None,
) -> None:
    """Fill empty rows (n,) of the state from packed records; newest_us (rows of the state,) gets their newest times.

    Without `seen` the events that came lately are passed over: only a slab that takes events in needs them.

    Raises:
        LayoutError: written by another version of the view, or damaged.
    """
    lengths = np.fromiter(map(len, blobs), np.int64, len(blobs))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if len(blobs) and lengths.min() < HEADER_BYTES:
        raise _damaged(plan, int(lengths.argmin()))
    data = np.frombuffer(bytearray().join(blobs), np.uint8)
    header = data[starts[:, None] + _HEADER_AT].view("<i8")
    wanted = np.uint64(int(plan.fingerprint, 16)).astype(np.int64)
    other = np.flatnonzero(header[:, 0] != wanted)
    if other.size:
        found = read_header(blobs[other[0]]).fingerprint
        raise LayoutError(
            f"view {plan.name}: a record has layout {found}, this declaration is {plan.fingerprint}: the view was "
            "changed; backfill the new version, then switch to it",
        )
    newest = np.ascontiguousarray(header[:, 2]).astype(np.int64)
    newest_us[rows] = newest
    at = starts + HEADER_BYTES
    for group, arrays in zip(plan.layout.groups, state, strict=True):
        group.unpack(arrays, rows, newest, data, at, ends)
    if seen is not None:
        seen.unpack(rows, newest, data, at, ends)
    elif plan.layout.dedupe_us:
        skip_seen(data, at, ends)
    if (at != ends).any():
        raise _damaged(plan, int(np.flatnonzero(at != ends)[0]))


def read_packed(
    plan: "ViewPlan",
    ids: NDArray[np.int64],
    texts: Sequence[bytes],
    blobs: Sequence[bytes | None],
    now_us: int | NDArray[np.int64],
    request: Mapping[str, pl.Series] | None = None,
) -> Answer:
    """Features of n entities as of `now_us`, straight from their packed records; None is an entity without one.

    ids (n,) and texts (n,) name the entities; only the blobs decide the values. `request`: fields of the request, (n,).

    Raises:
        LayoutError: a record was written by another version of the view, or is damaged.
    """
    assert len(ids) == len(texts) == len(blobs), f"{len(ids)} ids, {len(texts)} texts, {len(blobs)} records"
    now = np.full(len(blobs), now_us, np.int64) if isinstance(now_us, int) else np.require(now_us, np.int64, ["C", "W"])
    present = np.array([index for index, blob in enumerate(blobs) if blob is not None], np.int64)
    held: list[bytes] = [blob for blob in blobs if blob is not None]
    newest = np.full(len(blobs), NEVER, np.int64)
    outputs = plan.layout.outputs(len(blobs))
    state, block_newest = _scratch(plan)
    for start in range(0, len(present), BLOCK_ROWS):
        reads = present[start : start + BLOCK_ROWS]
        rows = np.arange(len(reads))
        for group, arrays in zip(plan.layout.groups, state, strict=True):
            group.clear(arrays, rows)
        unpack_records(plan, state, block_newest, rows, held[start : start + BLOCK_ROWS])
        newest[reads] = block_newest[rows]
        ops = Operations(rows, now[reads], reads, plan.layout.no_events(), np.zeros(0, np.uint8))
        for group, arrays, out in zip(plan.layout.groups, state, outputs, strict=True):
            group.run(arrays, ops, out)
    return plan.layout.answer(outputs, newest, now, request)


def _section(
    write: Callable[[NDArray[np.uint8], NDArray[np.int64]], None], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A group's part of `count` rows, as its `pack` writes them: bytes, and edges (count + 1,) of the rows in them."""
    edges = np.zeros(count + 1, np.int64)
    out = np.empty(_SECTION_BYTES * count, np.uint8)
    write(out, edges[1:])
    if edges[-1] > len(out):
        out = np.empty(int(edges[-1]), np.uint8)
        write(out, edges[1:])
    return out, edges


def _scratch(plan: "ViewPlan") -> tuple[list[State], NDArray[np.int64]]:
    """This thread's room for BLOCK_ROWS unpacked records of the view."""
    held: dict[str, tuple[list[State], NDArray[np.int64]]] = _SCRATCH.__dict__.setdefault("held", {})
    if plan.fingerprint not in held:
        held[plan.fingerprint] = (plan.layout.make(BLOCK_ROWS), np.full(BLOCK_ROWS, NEVER, np.int64))
    return held[plan.fingerprint]


def _damaged(plan: "ViewPlan", index: int) -> LayoutError:
    return LayoutError(f"view {plan.name}: record {index} of the batch is damaged; delete it and replay its entity")
