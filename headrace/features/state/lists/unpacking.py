"""Unpack or read rows of lists from the packed form described in lists/packing.py."""

from typing import NamedTuple

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, TAG, Blocks, make_block, room_of
from headrace.features.state.lists.packing import HALF_BITS, ListBase
from headrace.features.state.lists.update import INT, LEAST, STAMP, TEXT, TIME, List, ListOut, slot_of
from headrace.features.state.operations import Packed, Reads
from headrace.kernels.bit_columns import (
    bits_of,
    get_codes,
    get_field,
    get_numbers,
    get_signed,
    get_spans,
    get_unsigned,
    pass_padding,
)
from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part
from headrace.kernels.texts import TextLines, read_text


class ReadScratch(NamedTuple):
    """Scratch arrays of a reader: words (3, N + SPARE), column (N + SPARE,)."""

    words: Ints
    column: Floats


@lean_kernel
def unpack_list(
    blocks: Blocks,
    spec: List,
    base_blocks: Blocks,
    base: ListBase,
    packed: Packed,
    begin: Int,
    texts: TextLines,
    reads: Reads,
    scratch: ReadScratch,
    out: ListOut,
) -> Int:
    """Unpack what `pack_list` wrote, from row `begin` on, into empty rows, into answers, or both; see `Reads`.

    Answers are as `run_list` writes them, contiguous lists one after the other in the order of the rows. Event ids are
    not stored if there are reads. The base's rows must be filled before. Returns the first row that ran out of memory,
    n when all are done.
    """
    blocks, spec, base_blocks, base = Blocks(*blocks), List(*spec), Blocks(*base_blocks), ListBase(*base)
    packed, texts, reads = Packed(*packed), TextLines(*texts), Reads(*reads)
    scratch, out = ReadScratch(*scratch), ListOut(*out)
    words, base_words, data, kinds, links = blocks.words, base_blocks.words, packed.data, spec.kinds, base.links
    width, base_slots, times, codes = kinds.size, scratch.words[0], scratch.words[1], scratch.words[2]
    for i in range(begin, packed.rows.size):
        row, end = packed.rows[i], packed.ends[i]
        field, bit = get_field(data, 8 * packed.at[i], end, bits_of(np.uint64(spec.size)))
        if packed.at[i] < 0 or bit < 0 or field > np.uint64(spec.size):
            packed.at[i] = -1
            continue
        count = np.int64(field)
        start: Int = np.int64(0)
        room: Int = np.int64(0)
        if reads.keeps:
            if not make_block(blocks, 0, row, count, LEAST, spec.size, STAMP + width):
                return i
            blocks.heads[row, TAG] = 0
            start, room = blocks.heads[row, START], room_of(blocks.heads[row, ORDER], LEAST, spec.size)
        base_stamps = base_blocks.heads[row, START]
        base_values = base_stamps + STAMP * room_of(base_blocks.heads[row, ORDER], LEAST, base.size)
        unlike: Int = np.int64(count)  # elements that do not refer to the base
        if base.exists and count > 0:
            unlike, bit = _get_steps(data, bit, end, base_blocks, base, row, count, base_slots, codes)
        bit = get_spans(data, bit, end, codes, unlike)
        if bit < 0 or bit + HALF_BITS * unlike > 8 * end or _any_negative(codes, unlike):
            packed.at[i] = -1
            continue
        _add_up(codes, unlike, count, packed.newest[i], base_words, base_stamps, base_slots, times)
        if reads.keeps:
            for j in range(count):
                words[np.uint64(start + STAMP * (count - 1 - j))] = times[np.uint64(j)]
            if reads.moments.size == 0:
                get_codes(data, bit, HALF_BITS, codes, unlike)
                _keep_ids(words, start, codes, unlike, count, base_words, base_stamps, base_slots)
        bit += HALF_BITS * unlike
        first, slot = _start_list(times, count, reads, i, spec.strict, out)
        for m in range(width):
            is_linked = unlike < count and links[m] >= 0
            bit = _get_column(data, bit, end, kinds[m], codes, scratch.column, unlike if is_linked else count, texts)
            if bit < 0:
                break
            if is_linked:
                _insert_same(codes, unlike, count, base_words, base_values + links[m], base.width, base_slots)
            if kinds[m] == TIME:
                for j in range(count):
                    if not is_linked or base_slots[j] < 0:
                        codes[j] = times[j] - codes[j]
            if reads.keeps:
                values = start + STAMP * room + m
                for j in range(count):
                    words[np.uint64(values + width * (count - 1 - j))] = codes[np.uint64(j)]
            if reads.moments.size > 0:
                for j in range(first, count):
                    out.values[np.uint64((slot + j - first) * width + m)] = codes[np.uint64(j)]
        packed.at[i] = pass_padding(data, bit, end) >> np.int64(3)
    return packed.rows.size


@part
def _get_steps(
    data: Bytes,
    bit: Int,
    end: Int,
    base_blocks: Blocks,
    base: ListBase,
    row: Int,
    count: Int,
    base_slots: Ints,
    codes: Ints,
) -> tuple[Int, Int]:
    """Read which elements refer to the base: (number that do not, next position or -1).

    `base_slots` gets the slot of each element in the base's circular block, -1 if it has no reference.
    """
    heads = base_blocks.heads
    refers, bit = get_field(data, bit, end, 1)
    if refers == np.uint64(0):
        return count, bit
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0:
        return count, bit
    first, base_count = heads[row, TAG], heads[row, COUNT]
    room = room_of(heads[row, ORDER], LEAST, base.size)
    unlike: Int = np.int64(0)
    after: Int = np.int64(0)
    for j in range(count):
        base_slots[j] = -1
        if codes[j] == 0:
            unlike += 1
        elif np.uint64(codes[j]) > np.uint64(base_count - after):
            return count, np.int64(-1)
        else:
            after += codes[j]
            base_slots[j] = slot_of(first, base_count - after, room)
    return unlike, bit


@part
def _any_negative(spans: Ints, count: Int) -> bool:
    """Whether an element is newer than the one before it, which no writer produces."""
    every = np.int64(0)
    for j in range(count):
        every |= spans[np.uint64(j)]
    return bool(every < 0)


@part
def _add_up(
    spans: Ints, unlike: Int, count: Int, newest: Int, base_words: Ints, base_stamps: Int, base_slots: Ints, times: Ints
) -> None:
    """Compute the times of `count` elements, from the base or from the spans of those without a reference."""
    time = newest
    if unlike == count:
        for j in range(count):
            time -= spans[np.uint64(j)]
            times[np.uint64(j)] = time
        return
    used: Int = np.int64(0)
    for j in range(count):
        if base_slots[j] >= 0:
            time = base_words[base_stamps + STAMP * base_slots[j]]
        else:
            time -= spans[used]
            used += 1
        times[j] = time


@part
def _start_list(times: Ints, count: Int, reads: Reads, i: Int, strict: bool, out: ListOut) -> tuple[Int, Int]:
    """First element that the read of row i returns, and its slot; writes the list's count, and its times if read."""
    first: Int = np.int64(0)
    if reads.moments.size == 0:
        return first, np.int64(0)
    while strict and first < count and times[first] >= reads.moments[i]:
        first += 1
    read = reads.reads[i]
    if out.filled.size > 0:
        out.starts[read] = out.filled[0]
        out.filled[0] += count - first
    out.counts[read] = count - first
    slot: Int = out.starts[read]
    for j in range(first, count if out.times.size > 0 else first):
        out.times[slot + j - first] = times[j]
    return first, slot


@part
def _keep_ids(
    words: Ints, start: Int, halves: Ints, unlike: Int, count: Int, base_words: Ints, base_stamps: Int, base_slots: Ints
) -> None:
    """Write the ids of `count` elements into a block, oldest first."""
    used: Int = np.int64(0)
    for j in range(count):
        at = start + STAMP * (count - 1 - j) + 1
        if unlike < count and base_slots[j] >= 0:
            words[at] = base_words[base_stamps + STAMP * base_slots[j] + 1]
        else:
            words[at] = (halves[used] << np.int64(32)) >> np.int64(32)
            used += 1


@part
def _insert_same(
    codes: Ints, unlike: Int, count: Int, base_words: Ints, values: Int, base_width: Int, base_slots: Ints
) -> None:
    """Move the first `unlike` values to their elements, in place, and insert the base's values for the others."""
    for j in range(count - 1, -1, -1):
        if base_slots[j] >= 0:
            codes[j] = base_words[values + base_width * base_slots[j]]
        else:
            unlike -= 1
            codes[j] = codes[unlike]


@part
def _get_column(
    data: Bytes, bit: Int, end: Int, kind: Int, codes: Ints, column: Floats, count: Int, texts: TextLines
) -> Int:
    """Read `count` values into `codes`, for TIME the spans to the event time; returns the next position or -1."""
    if kind == INT:
        bit = get_signed(data, bit, end, codes, count)
    elif kind == TIME:
        bit = get_spans(data, bit, end, codes, count)
    elif kind == TEXT:
        bit = _get_texts(data, bit, end, codes, count, texts)
    else:
        bit = get_numbers(data, bit, end, column, count, 0.0, codes)
        for j in range(count):
            codes[np.uint64(j)] = np.float64(column[np.uint64(j)]).view(np.int64)
    return bit


@part
def _get_texts(data: Bytes, bit: Int, end: Int, codes: Ints, count: Int, texts: TextLines) -> Int:
    """Read the hashes of `count` texts into `codes`; returns the next position or -1."""
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0:
        return bit
    byte = pass_padding(data, bit, end) >> np.int64(3)
    if byte < 0:
        return np.int64(-1)
    for j in range(count):
        if np.uint64(codes[j]) > np.uint64(end - byte):
            return np.int64(-1)
        stop = byte + codes[j]
        codes[j], is_text = read_text(data, byte, stop, texts)
        if not is_text:
            return np.int64(-1)
        byte = stop
    return 8 * byte
