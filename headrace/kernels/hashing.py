"""64-bit hashes: splitmix64 for numbers, XXH64 for texts, as published.

Sources: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the mixer of figure 17;
Collet, "xxHash fast digest algorithm", version 0.1.1, XXH64.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, load_word, part

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_NEWLINES = np.uint64(0x0A0A0A0A0A0A0A0A)
_ONES, _HIGHS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


@part
def mix(key: Int) -> np.uint64:
    """splitmix64 of one int64."""
    x = np.uint64(key) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def splitmix64(keys: Ints) -> NDArray[np.uint64]:
    """splitmix64 of each key; (n,) int64 -> (n,) uint64.

    >>> int(splitmix64(np.array([0]))[0])
    16294208416658607535
    """
    out = np.empty(len(keys), np.uint64)
    _mix_all(np.require(keys, np.int64, ["C", "W"]), out)
    return out


@lean_kernel
def _mix_all(keys: Ints, out: NDArray[np.uint64]) -> None:
    for i in range(keys.size):
        out[i] = mix(keys[i])


@lean_kernel
def shards_of(keys: Ints, shards: Int, out: Ints) -> None:
    """splitmix64 of each key modulo `shards`: (n,) -> out (n,)."""
    count = np.uint64(shards)
    for i in range(keys.size):
        out[i] = np.int64(mix(keys[i]) % count)


@part
def _rotl(x: np.uint64, by: Int) -> np.uint64:
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


@part
def _round(acc: np.uint64, word: np.uint64) -> np.uint64:
    return _rotl(acc + word * _P2, 31) * _P1


@part
def _merge_round(h: np.uint64, lane: np.uint64) -> np.uint64:
    return (h ^ _round(np.uint64(0), lane)) * _P1 + _P4


@lean_kernel
def xxh64(data: Bytes, start: Int, end: Int, seed: np.uint64) -> np.uint64:
    """XXH64 of `data[start:end]`."""
    at = start
    if end - start >= 32:
        v1, v2, v3, v4 = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + 32 <= end:
            v1 = _round(v1, load_word(data, at))
            v2 = _round(v2, load_word(data, at + 8))
            v3 = _round(v3, load_word(data, at + 16))
            v4 = _round(v4, load_word(data, at + 24))
            at += 32
        h = _rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18)
        h = _merge_round(_merge_round(_merge_round(_merge_round(h, v1), v2), v3), v4)
    else:
        h = seed + _P5
    h += np.uint64(end - start)
    while at + 8 <= end:
        h = _rotl(h ^ _round(np.uint64(0), load_word(data, at)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        word = np.uint64(0)
        for j in range(4):
            word |= np.uint64(data[at + j]) << np.uint64(8 * j)
        h = _rotl(h ^ (word * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotl(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    return _spread(h)


@part
def _spread(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@lean_kernel
def hash_spans(data: Bytes, offsets: Ints, seed: np.uint64, out: Ints) -> None:
    """`out[i]` = XXH64 of `data[offsets[i]:offsets[i + 1]]` as int64; offsets (n + 1,), out (n,)."""
    for i in range(out.size):
        out[i] = np.int64(xxh64(data, offsets[i], offsets[i + 1], seed))


@lean_kernel
def hash_words(words: Ints, seed: np.uint64, out: Ints) -> None:
    """`out[i]` = XXH64 of the 8 bytes of `words[i]`, low byte first, as int64: (n,) -> (n,)."""
    start = seed + _P5 + np.uint64(8)
    for i in range(words.size):
        h = _rotl(start ^ _round(np.uint64(0), np.uint64(words[i])), 27) * _P1 + _P4
        out[i] = np.int64(_spread(h))


@lean_kernel
def chain_lines(data: Bytes, state: np.uint64, out: Ints) -> np.uint64:
    """Running hash of a text's lines, each ending with a newline: `out[i]` is the hash of the lines before line i.

    out (lines + 1,); its last element is also returned. `state` is the hash of the lines before the text, 0 at the
    start of a file. White space at the end of a line is ignored. Searches eight bytes at a time: 50 ns per 100 bytes.
    """
    begin, at = 0, 0
    for i in range(out.size - 1):
        out[i] = np.int64(state)
        while at + 8 <= data.size:
            word = load_word(data, at) ^ _NEWLINES
            if (word - _ONES) & ~word & _HIGHS:
                break
            at += 8
        while data[at] != 10:
            at += 1
        end = at
        while end > begin and data[end - 1] <= 32:
            end -= 1
        state = xxh64(data, begin, end, state)
        at += 1
        begin = at
    out[-1] = np.int64(state)
    return state
