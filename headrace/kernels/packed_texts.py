"""Texts in a packed record: their bytes are read where they lie, the rest of the process knows them by their hash."""

import numpy as np

from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.kernels.hashing import xxh64


@part
def read_text(data: Bytes, start: Int, stop: Int, texts: Ints, found: Int) -> tuple[Int, Int]:
    """Read the text `data[start:stop]`: (its hash, lines of `texts` in use, or -1 where it is not UTF-8).

    texts (room for one line a text, 3) gets (hash, start, stop), so that the pool can learn it; none where it is full.
    """
    word = np.int64(xxh64(data, start, stop, np.uint64(0)))
    if not is_utf8(data, int(start), int(stop)):
        return word, np.int64(-1)
    if found < texts.shape[0]:
        texts[found, 0] = word
        texts[found, 1] = start
        texts[found, 2] = stop
        found += 1
    return word, np.int64(found)


@lean_kernel
def is_utf8(data: Bytes, start: int, end: int) -> bool:
    """Is `data[start:end]` well-formed UTF-8 (Unicode 16, table 3-7: no surrogates, no overlong forms)?"""
    i = start
    while i < end:
        first = data[i]
        if first < 0x80:
            i += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            low = 0xA0 if first == 0xE0 else 0x80
            high = 0x9F if first == 0xED else 0xBF
        elif 0xF0 <= first <= 0xF4:
            more = 3
            low = 0x90 if first == 0xF0 else 0x80
            high = 0x8F if first == 0xF4 else 0xBF
        else:
            return False
        if i + more >= end or not low <= data[i + 1] <= high:
            return False
        for j in range(i + 2, i + more + 1):
            if not 0x80 <= data[j] <= 0xBF:
                return False
        i += more + 1
    return True
