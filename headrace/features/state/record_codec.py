"""The header of a packed record, and how its sections are put together.

    version, 4 bytes | varint sequence | time: varint 4 * zigzag(number) + unit | arrival: zigzag varint, after the time

The newest event time is counted in the largest of minutes, seconds, milliseconds and microseconds that divides it; 0
microseconds, which that rule never writes, stands for a record without events. The version is the first half of the
fingerprint.
"""

import numpy as np

from headrace.features.state.rings.update import EMPTY
from headrace.kernels.bit_columns import unit_of, unit_us
from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel
from headrace.kernels.varints import get_half, get_signed, get_varint, put_half, put_signed, put_varint

_EMPTY = np.int64(EMPTY)


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
    """Read the header at each `data[at[i]:ends[i]]` into arrays (n,); `at[i]` moves on, -1 where bytes are wrong."""
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
    """Copy `parts[starts[i]:ends[i]]` to `out[at[i]:]` and move `at[i]` to its end: sections into records."""
    for i in range(at.size):
        size = ends[i] - starts[i]
        copy_bytes(parts, starts[i], out, at[i], size)
        at[i] += size
