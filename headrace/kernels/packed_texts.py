"""Texts in a packed record: their bytes are read where they lie, the rest of the process knows them by their hash."""

import numpy as np

from headrace.features.kernels.compile import Bytes, Int, Ints, part
from headrace.features.kernels.hashing import xxh64
from headrace.schemas.kernels import is_utf8


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
