"""Columns of numbers in a stream of bits: all numbers of a column have the width of the largest.

A value's position does not depend on earlier values, so reads have no serial dependency (measured: 1 ns per number, 4
to 5 ns as varints), and a reader can skip a column. Low bits come first; positions count bits.

    unsigned   width (6 bits), the numbers
    signed     1 bit, whether as zigzag; then as unsigned
    spans      unit (2 bits: 1 us, 1 ms, 1 s, 1 min), the largest that divides all; then as signed, in that unit
    floats     form (3 bits), whether as zigzag (1), width (6), for forms 5 to 7 the width of steps (3); then by form
               0 to 3    x * 10^0, 10^2, 10^4, 10^6: integers for which x is the nearest float
               4         the 64 bits of x
               5 to 7    x * 10^2, 10^4, 10^6, then a column of steps to adjacent floats, as zigzag: sums of cents with
                         their rounding error

If an empty cell holds 0, it is an ordinary number. If it holds another value, such as infinity, it is written as 0, and
all other numbers are written plus one, except in form 4. A writer needs ROOM_BYTES in `out` beyond what it writes;
without that room it only advances the position. A reader never leaves `data[:end]`: it returns position -1 if the bytes
end early, and every reader passes on a -1.
"""

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros

from headrace.kernels.compile import Bytes, Floats, Int, Ints, load_word, part, store_word

ROOM_BYTES = 8
"""Bytes that `out` needs beyond the last byte written, since whole words are stored."""
SPARE = 7
"""Numbers that a column needs room for beyond those that are read, since they are read eight at a time."""
_RAW, _SCALES = 4, 3
_WIDE, _WORD, _WIDTH_BITS = 56, 64, 6
_SCALED_MAX, _STEPS_MAX = 2.0**52, 63
_NOTHING = np.int64(-(2**63))
_ONE, _THREE, _SEVEN, _FULL = np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(64)


@part
def bits_of(value: np.uint64) -> Int:
    """Bits that an unsigned number needs, 0 for 0, and 64 for more than 56."""
    width = np.int64(_FULL - np.uint64(leading_zeros(value)))
    return width if width <= _WIDE else np.int64(_WORD)


@part
def to_byte(at: Int) -> Int:
    """Round a position up to the next byte; -1 stays -1."""
    return (at + 7) & ~np.int64(7) if at >= 0 else np.int64(-1)


@part
def pass_padding(data: Bytes, at: Int, end: Int) -> Int:
    """Skip the padding up to the next byte; returns -1 if the padding is not all zero."""
    rest, at = get_field(data, at, end, -at & np.int64(7))
    return at if rest == np.uint64(0) else np.int64(-1)


@part
def zigzag(value: Int) -> np.uint64:
    """Encode a signed number as an unsigned one, so that a small magnitude gives a small number."""
    return np.uint64((value << np.int64(1)) ^ (value >> np.int64(63)))


@part
def unzigzag(code: np.uint64) -> Int:
    """The inverse of `zigzag`."""
    return np.int64(code >> _ONE) ^ -np.int64(code & _ONE)


@part
def put_field(out: Bytes, at: Int, value: np.uint64, width: Int) -> Int:
    """Write a number of at most 56 bits; returns the next position."""
    byte, used = at >> np.int64(3), np.uint64(at & np.int64(7))
    if byte + ROOM_BYTES <= out.size:
        before = np.uint64(out[byte]) & ((_ONE << used) - _ONE)
        store_word(out, byte, before | (value << used))
    return at + width


@part
def get_field(data: Bytes, at: Int, end: Int, width: Int) -> tuple[np.uint64, Int]:
    """Read a number of at most 56 bits: (number, next position or -1)."""
    if at < 0 or at + width > 8 * end:
        return np.uint64(0), np.int64(-1)
    return number_at(data, at, width), at + width


@part
def number_at(data: Bytes, at: Int, width: Int) -> np.uint64:
    """The number of `width` bits at a position. All of its bits must be inside `data`."""
    byte, used = at >> np.int64(3), np.uint64(at & np.int64(7))
    word = np.uint64(0)
    if byte + 8 <= data.size:
        word = load_word(data, byte) >> used
    else:  # the last bytes of `data`
        for j in range(data.size - byte):
            word |= np.uint64(data[byte + j]) << np.uint64(8 * j)
        word >>= used
    if width <= _WIDE:
        return word & ((_ONE << np.uint64(width)) - _ONE)
    if used > np.uint64(0):
        word |= np.uint64(data[byte + 8]) << (_FULL - used)
    return word


@part
def get_codes(data: Bytes, at: Int, width: Int, codes: Ints, count: Int) -> None:
    """Read `count` numbers of `width` bits each. All of them must be inside `data`."""
    bit, step = np.uint64(at), np.uint64(width)
    if width <= _WIDE and ((at + count * width) >> np.int64(3)) + 8 <= data.size:
        mask = (_ONE << step) - _ONE
        for j in range(count):
            codes[np.uint64(j)] = np.int64((load_word(data, bit >> _THREE) >> (bit & _SEVEN)) & mask)
            bit += step
    else:
        for j in range(count):
            codes[j] = np.int64(number_at(data, at + j * width, width))


@part
def put_codes(out: Bytes, at: Int, codes: Ints, count: Int, width: Int) -> Int:
    """Write the first `count` codes with `width` bits each, at most 56 or exactly 64; returns the next position."""
    end = at + count * width
    if width == 0 or (end >> np.int64(3)) + ROOM_BYTES > out.size:
        return end
    byte, used = at >> np.int64(3), np.uint64(at & np.int64(7))
    word = np.uint64(out[byte]) & ((_ONE << used) - _ONE)
    step = np.uint64(width)
    for j in range(count):
        code = np.uint64(codes[np.uint64(j)])
        store_word(out, byte, word | (code << used))
        if width > _WIDE:  # the bits shifted out go into the next word; `used` stays
            word = code >> (_FULL - used) if used > np.uint64(0) else np.uint64(0)
            byte += 8
            continue
        word |= code << used
        used += step
        word >>= used & ~np.uint64(7)
        byte += np.int64(used >> np.uint64(3))
        used &= np.uint64(7)
    if width > _WIDE and used > np.uint64(0):
        out[byte] = np.uint8(word)
    return end


@part
def _joined(codes: Ints, count: Int) -> np.uint64:
    """The bitwise or of the first `count` codes."""
    joined = np.uint64(0)
    for j in range(count):
        joined |= np.uint64(codes[np.uint64(j)])
    return joined


@part
def put_unsigned(out: Bytes, at: Int, codes: Ints, count: Int) -> Int:
    """Write an unsigned column of the first `count` codes, nothing if `count` is 0; returns the next position."""
    if count == 0:
        return at
    width = bits_of(_joined(codes, count))
    at = put_field(out, at, np.uint64(min(width, 63)), _WIDTH_BITS)
    return put_codes(out, at, codes, count, width)


@part
def get_unsigned(data: Bytes, at: Int, end: Int, codes: Ints, count: Int) -> Int:
    """Read an unsigned column into the first `count` codes; returns the next position or -1."""
    width, at = _get_width(data, at, end, count)
    if at < 0:
        return at
    get_codes(data, at, width, codes, count)
    return at + count * width if bits_of(_joined(codes, count)) == width else np.int64(-1)


@part
def _get_width(data: Bytes, at: Int, end: Int, count: Int) -> tuple[Int, Int]:
    """Read the width of an unsigned column, and check that its numbers are inside: (width, their position or -1)."""
    if count == 0:
        return np.int64(0), at
    code, at = get_field(data, at, end, _WIDTH_BITS)
    width = _width_of(code)
    if at < 0 or width < 0 or at + count * width > 8 * end:
        return np.int64(0), np.int64(-1)
    return width, at


@part
def _width_of(code: np.uint64) -> Int:
    """Width encoded by a field of 6 bits; -1 for a code that no writer produces."""
    if code <= np.uint64(_WIDE):
        return np.int64(code)
    return np.int64(_WORD) if code == np.uint64(63) else np.int64(-1)


@part
def put_signed(out: Bytes, at: Int, codes: Ints, count: Int) -> Int:
    """Write a signed column of the first `count` codes, overwriting them; returns the next position."""
    if count == 0:
        return at
    negative = False
    for j in range(count):
        negative |= codes[np.uint64(j)] < 0
    if negative:
        for j in range(count):
            codes[np.uint64(j)] = np.int64(zigzag(codes[np.uint64(j)]))
    return put_unsigned(out, put_field(out, at, np.uint64(negative), 1), codes, count)


@part
def get_signed(data: Bytes, at: Int, end: Int, codes: Ints, count: Int) -> Int:
    """Read a signed column into the first `count` codes; returns the next position or -1."""
    if count == 0:
        return at
    negative, at = get_field(data, at, end, 1)
    width, at = _get_width(data, at, end, count)
    if at < 0:
        return at
    get_codes(data, at, width, codes, count)
    joined = _joined(codes, count)
    if bits_of(joined) != width or (negative & ~joined) != np.uint64(0):
        return np.int64(-1)  # no writer uses more bits than needed, or zigzag without a negative number
    if negative != np.uint64(0):
        for j in range(count):
            codes[np.uint64(j)] = unzigzag(np.uint64(codes[np.uint64(j)]))
    return at + count * width


@part
def unit_us(unit: Int) -> Int:
    """Microseconds of a unit of time: 0 is 1 us, 1 a millisecond, 2 a second, 3 a minute."""
    if unit < 2:
        return np.int64(1) if unit == 0 else np.int64(1_000)
    return np.int64(1_000_000) if unit == 2 else np.int64(60_000_000)


@part
def unit_of(span: Int, most: Int) -> Int:
    """The largest unit, at most `most`, that divides a span of microseconds."""
    unit: Int = most
    while unit > 0 and span % unit_us(unit) != 0:
        unit -= 1
    return unit


@part
def put_spans(out: Bytes, at: Int, codes: Ints, count: Int) -> Int:
    """Write a column of the first `count` spans, in microseconds, overwriting them; returns the next position."""
    if count == 0:
        return at
    unit: Int = np.int64(3)
    for j in range(count):
        unit = unit_of(codes[j], unit)
    for j in range(count if unit > 0 else 0):
        codes[j] //= unit_us(unit)
    return put_signed(out, put_field(out, at, np.uint64(unit), 2), codes, count)


@part
def get_spans(data: Bytes, at: Int, end: Int, codes: Ints, count: Int) -> Int:
    """Read a column of spans, in microseconds, into the first `count` codes; returns the next position or -1."""
    if count == 0:
        return at
    unit, at = get_field(data, at, end, 2)
    at = get_signed(data, at, end, codes, count)
    if unit != np.uint64(0) and at >= 0:
        for j in range(count):
            codes[np.uint64(j)] *= unit_us(np.int64(unit))
    return at


@part
def put_numbers(out: Bytes, at: Int, column: Floats, count: Int, nothing: float, codes: Ints, steps: Ints) -> Int:
    """Write the first `count` floats of a column in the first form that represents them; returns the next position.

    `nothing` is the value of an empty cell; codes and steps (count,) are scratch.
    """
    if count == 0:
        return at
    form: Int = np.int64(0)
    stepped: Int = np.int64(-1)
    while form <= _SCALES:
        stepped = _scale(column, count, nothing, form, codes, steps)
        if stepped >= 0:
            break
        form += 1
    if stepped < 0:
        for j in range(count):
            codes[np.uint64(j)] = np.float64(column[np.uint64(j)]).view(np.int64)
        at = put_field(out, at, np.uint64(_RAW | (63 << 4)), 10)
        return put_codes(out, at, codes, count, _WORD)
    signed, width = _shorten(codes, count, nothing)
    form += _RAW * stepped
    at = put_field(out, at, np.uint64(form) | (np.uint64(signed) << np.uint64(3)) | np.uint64(width << 4), 10)
    if stepped == 0:
        return put_codes(out, at, codes, count, width)
    joined = np.uint64(0)
    for j in range(count):
        steps[np.uint64(j)] = np.int64(zigzag(steps[np.uint64(j)]))
        joined |= np.uint64(steps[np.uint64(j)])
    at = put_codes(out, put_field(out, at, np.uint64(bits_of(joined)), 3), codes, count, width)
    return put_codes(out, at, steps, count, bits_of(joined))


@part
def _power(form: Int) -> float:
    """The factor by which numbers of a form are multiplied."""
    if form < 2:
        return 1.0 if form == 0 else 100.0
    return 10_000.0 if form == 2 else 1_000_000.0


@part
def _scale(column: Floats, count: Int, nothing: float, form: Int, codes: Ints, steps: Ints) -> Int:
    """Convert the numbers to a form, as `codes` and `steps`; returns 1 with steps, 0 without, -1 if they do not fit."""
    power, steps_max = _power(form), np.int64(0 if form == 0 else _STEPS_MAX)
    fits, joined = True, np.int64(0)
    for j in range(count):
        value = column[np.uint64(j)]
        scaled = np.floor(value * power + 0.5)
        step = np.float64(value).view(np.int64) - np.float64(scaled / power).view(np.int64)
        code = np.int64(scaled)
        is_exact = (abs(scaled) < _SCALED_MAX) & (step <= steps_max) & (step >= -steps_max)
        if nothing != 0.0 and value == nothing:
            is_exact, code, step = True, _NOTHING, np.int64(0)
        codes[np.uint64(j)] = code
        steps[np.uint64(j)] = step
        fits &= is_exact
        joined |= step
    return np.int64(joined != 0) if fits else np.int64(-1)


@part
def _shorten(codes: Ints, count: Int, nothing: float) -> tuple[bool, Int]:
    """Convert scaled numbers to the codes that are written; returns whether they are zigzag, and their width."""
    signed, more, joined = False, np.int64(nothing != 0.0), np.uint64(0)
    for j in range(count):
        code = codes[np.uint64(j)]
        signed |= (code < 0) & (code != _NOTHING)
    for j in range(count):
        code = codes[np.uint64(j)]
        code = np.int64(0) if code == _NOTHING else (np.int64(zigzag(code)) if signed else code) + more
        codes[np.uint64(j)] = code
        joined |= np.uint64(code)
    return signed, bits_of(joined)


@part
def get_numbers(data: Bytes, at: Int, end: Int, column: Floats, count: Int, nothing: float, codes: Ints) -> Int:
    """Read what `put_numbers` wrote into the first `count` floats of a column; returns the next position or -1.

    NaNs keep their bits, since no arithmetic is done with floats written as 64 bits. codes (count,) is scratch.
    """
    if count == 0:
        return at
    head, at = get_field(data, at, end, 10)
    form, width = np.int64(head & _SEVEN), _width_of(head >> np.uint64(4))
    extra: Int = np.int64(0)
    if form > _RAW:
        field, at = get_field(data, at, end, 3)
        extra = np.int64(field)
    if at < 0 or width < 0 or at + count * (width + extra) > 8 * end:
        return np.int64(-1)
    if (form == _RAW) != (width == _WORD) or (form > _RAW) != (extra > 0):
        return np.int64(-1)
    if form == _RAW:
        get_codes(data, at, width, codes, count)
        for j in range(count):
            column[np.uint64(j)] = np.int64(codes[np.uint64(j)]).view(np.float64)
        return at + count * width
    signed, power = (head >> _THREE) & _ONE, _power(form & np.int64(3))
    rest = (count + 7) & ~np.int64(7)
    if count > 3 and width <= _WIDE and ((at + rest * width) >> np.int64(3)) + 8 <= data.size:
        _get_scaled(data, at, width, signed, power, nothing, column, count)
    else:
        for j in range(count):
            code = number_at(data, at + j * width, width)
            column[j] = _scaled(code, signed, np.uint64(nothing != 0.0), power, nothing)
    at += count * width
    if extra > 0:
        get_codes(data, at, extra, codes, count)
        for j in range(count):
            bits = np.float64(column[np.uint64(j)]).view(np.int64) + unzigzag(np.uint64(codes[np.uint64(j)]))
            column[np.uint64(j)] = np.int64(bits).view(np.float64)
    return at + count * extra


@part
def _get_scaled(
    data: Bytes, at: Int, width: Int, signed: np.uint64, power: float, nothing: float, column: Floats, count: Int
) -> None:
    """Read scaled numbers eight at a time, up to SPARE past the last: a loop without branches is vectorised."""
    mask, more = (_ONE << np.uint64(width)) - _ONE, np.uint64(nothing != 0.0)
    bit, step = np.uint64(at), np.uint64(width)
    for first in range(0, count, 8):
        for j in range(8):
            place = bit + np.uint64(j) * step
            code = (load_word(data, place >> _THREE) >> (place & _SEVEN)) & mask
            column[np.uint64(first + j)] = _scaled(code, signed, more, power, nothing)
        bit += step << _THREE


@part
def _scaled(code: np.uint64, signed: np.uint64, more: np.uint64, power: float, nothing: float) -> float:
    """The number of a code: the inverse of `_scale` and `_shorten`."""
    code -= more
    number = np.int64(code >> signed) ^ -np.int64(code & signed)
    return np.float64(number) / power if np.int64(code) >= 0 else np.float64(nothing)
