"""The packed form of a list: newest element first, times as differences, texts written out."""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, INT, TEXT, TIME
from headrace.features.kernels.id_map import find_row
from headrace.features.kernels.varints import (
    get_number,
    get_signed,
    get_varint,
    get_word,
    put_bits,
    put_byte,
    put_signed,
    put_varint,
    put_word,
)


@lean_kernel
def pack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    rows: Ints,
    newest: Ints,
    table: Ints,
    text_offsets: Ints,
    text_data: Bytes,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is its count, then, newest first, (time since the one before, id, values) each; the first time counts from
    `newest[i]`. Texts are written out; `table`, `text_offsets`, `text_data` are the pool.
    """
    size = values.shape[1]
    position: Int = 0
    for i in range(rows.size):
        row = rows[i]
        position = put_varint(out, position, np.uint64(spans[row, 1]))
        before = newest[i]
        for j in range(spans[row, 1] - 1, -1, -1):
            p = (spans[row, 0] + j) % size
            time = stamps[row, p, 0]
            position = put_varint(out, position, np.uint64(before - time))
            before = time
            position = put_word(out, position, stamps[row, p, 1])
            for m in range(kinds.size):
                word = values[row, p, m]
                if kinds[m] == INT:
                    position = put_signed(out, position, word)
                elif kinds[m] == FLOAT:
                    position = put_bits(out, position, word, value_floats[row, p, m])
                elif kinds[m] == TIME:
                    position = put_signed(out, position, time - word)
                else:
                    text = find_row(table, word)
                    start, end = text_offsets[text], text_offsets[text + 1]
                    position = put_varint(out, position, np.uint64(end - start))
                    for b in range(start, end):
                        position = put_byte(out, position, text_data[b])
        ends[i] = position


@lean_kernel
def unpack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    texts: Ints,
) -> Int:
    """Fill empty rows from what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    texts (room for one line a text, 3) gets (hash, start, end) of each text met, so that the pool can learn them;
    returns how many. With a room of 0 lines only the hashes are used.
    """
    size = values.shape[1]
    found = 0
    for i in range(rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        count, position = get_varint(data, at[i], ends[i])
        if position < 0 or count > np.uint64(size):
            at[i] = -1
            continue
        spans[row, 0] = 0
        spans[row, 1] = np.int64(count)
        time: Int = newest[i]
        for j in range(spans[row, 1] - 1, -1, -1):
            delta, position = get_varint(data, position, ends[i])
            time -= np.int64(delta)
            stamps[row, j, 0] = time
            event_id, position = get_word(data, position, ends[i])
            stamps[row, j, 1] = event_id
            for m in range(kinds.size):
                if kinds[m] == TEXT:
                    length, position = get_varint(data, position, ends[i])
                    if position < 0 or length > np.uint64(ends[i] - position):
                        position = -1
                        break
                    stop = position + np.int64(length)
                    word = np.int64(xxh64(data, position, stop, np.uint64(0)))
                    values[row, j, m] = word
                    if found < texts.shape[0]:
                        texts[found, 0] = word
                        texts[found, 1] = position
                        texts[found, 2] = stop
                        found += 1
                    position = stop
                elif kinds[m] == FLOAT:
                    form, number, position = get_number(data, position, ends[i])
                    if form == 1 and position >= 0:
                        bits, _ = get_word(data, position - 8, position)
                        values[row, j, m] = bits
                    else:
                        value_floats[row, j, m] = number
                else:
                    whole, position = get_signed(data, position, ends[i])
                    values[row, j, m] = time - whole if kinds[m] == TIME else whole
            if position < 0:
                break
        at[i] = position
    return found
