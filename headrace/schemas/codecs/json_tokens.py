# ruff: noqa: C901, PLR0911, PLR0912, PLR1714
# Kernels are flat loops over many arrays, and numba compiles `==` chains to jumps but `in` to a tuple search.
# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""Tokens of JSON: white space, strings, numbers, names, and the times and bytes that strings hold.

Source: RFC 8259, strictly: everything that `json.loads` rejects is rejected, and so are NaN and lone surrogates.
Numbers with a significand above 2**53 or a power of ten beyond 22 are left to the caller as text (Clinger 1990: up to
these limits, one multiplication or division rounds correctly). Cost: about 1.5 ns per byte.

`at` is the start of a token and `end` (exclusive) the end of the payload. Functions return the position after the
token, or a failure below 0, see `failure`.
"""

import numpy as np

from headrace.kernels.compile import Bytes, lean_kernel, part
from headrace.kernels.texts import is_utf8
from headrace.schemas.codecs.slots import base64_value, hex_value

NOT_JSON, TWICE, WRONG_TYPE, MISSING, NO_ROOM, TOO_DEEP, NULL_VALUE, FAR_TIME = range(1, 9)
_WORDS = (b"null", b"true", b"fals", b"Infi", b"nity", b'NaN"')
NULL, TRUE, FALS, _INFI, _NITY, _NAN = (int.from_bytes(word, "little") for word in _WORDS)
OPS_MAX = 1 << 32  # a failure is -(status * OPS_MAX + op) - 1
_DEPTH_MAX = 64
_POWERS = np.array([10.0**i for i in range(23)])
_DIGITS_MAX = 1 << 53
_NAN_BITS, _INFINITY_BITS, _MINUS_INFINITY_BITS = np.array([np.nan, np.inf, -np.inf]).view(np.int64).tolist()
_INT_MIN = -(1 << 63)
_TENTH_OF_MIN = -((1 << 63) // 10)
_TENTH_OF_MAX = ((1 << 63) - 1) // 10 - 1
_EXPONENT_MAX = 1 << 40
_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


@part
def failure(status: int, op: int) -> int:
    """Encode status and op as one number below 0."""
    return -(status * OPS_MAX + op) - 1


@part
def skip_mark(data: Bytes, at: int, end: int) -> int:
    """Skip a UTF-8 byte order mark (RFC 8259, section 8.1, allows parsers to ignore it)."""
    has_mark = end - at >= 3 and data[at] == 0xEF and data[at + 1] == 0xBB and data[at + 2] == 0xBF
    return at + 3 if has_mark else at


@part
def skip_space(data: Bytes, at: int, end: int) -> int:
    """Skip white space."""
    while at < end and (data[at] == 0x20 or data[at] == 0x0A or data[at] == 0x0D or data[at] == 0x09):
        at += 1
    return at


@part
def is_word(data: Bytes, at: int, end: int, word: int) -> bool:
    """Whether the four bytes at `at` are `word`, a little-endian number."""
    if end - at < 4 or data[at] != word & 0xFF:
        return False
    return (
        data[at + 1] == (word >> 8) & 0xFF
        and data[at + 2] == (word >> 16) & 0xFF
        and data[at + 3] == (word >> 24) & 0xFF
    )


@part
def read_string(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """Skip the string whose opening quote is at `at`: (position after it or -1, whether it has escapes)."""
    escaped = False
    wide = False
    i = at + 1
    while i < end:
        c = data[i]
        if c == 0x22:
            if wide and not is_utf8(data, at + 1, i):
                return -1, escaped
            return i + 1, escaped
        if c < 0x20:
            return -1, escaped
        if c == 0x5C:
            escaped = True
            i = read_escape(data, i, end)
            if i < 0:
                return -1, escaped
            continue
        if c >= 0x80:
            wide = True
        i += 1
    return -1, escaped


@lean_kernel
def read_escape(data: Bytes, at: int, end: int) -> int:
    """Skip the escape whose backslash is at `at`; returns the position after it, or -1."""
    if at + 1 >= end:
        return -1
    c = data[at + 1]
    if c != 0x75:
        known = c == 0x22 or c == 0x5C or c == 0x2F or c == 0x62 or c == 0x66 or c == 0x6E or c == 0x72 or c == 0x74
        return at + 2 if known else -1
    if at + 6 > end:
        return -1
    point = hex_value(data, at + 2)
    if point < 0 or 0xDC00 <= point <= 0xDFFF:
        return -1
    if not 0xD800 <= point <= 0xDBFF:
        return at + 6
    if at + 12 > end or data[at + 6] != 0x5C or data[at + 7] != 0x75:
        return -1
    return at + 12 if 0xDC00 <= hex_value(data, at + 8) <= 0xDFFF else -1


@part
def read_digits(data: Bytes, at: int, end: int) -> int:
    """Skip decimal digits."""
    while at < end and 0x30 <= data[at] <= 0x39:
        at += 1
    return at


@part
def read_number(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """Skip the number at `at`: (position after it or -1, whether it is written as an integer)."""
    i = at + 1 if at < end and data[at] == 0x2D else at
    first = i
    i = read_digits(data, i, end)
    if i == first or (data[first] == 0x30 and i > first + 1):
        return -1, False
    whole = True
    if i < end and data[i] == 0x2E:
        whole = False
        first = i + 1
        i = read_digits(data, first, end)
        if i == first:
            return -1, False
    if i < end and (data[i] | 0x20) == 0x65:
        whole = False
        i += 1
        if i < end and (data[i] == 0x2B or data[i] == 0x2D):
            i += 1
        first = i
        i = read_digits(data, first, end)
        if i == first:
            return -1, False
    return i, whole


@part
def read_scalar(data: Bytes, at: int, end: int) -> int:
    """Skip a string, number, true, false or null; returns the position after it, or -1."""
    if data[at] == 0x22:
        at, _ = read_string(data, at, end)
        return at
    if is_word(data, at, end, TRUE) or is_word(data, at, end, NULL):
        return at + 4
    if is_word(data, at, end, FALS) and at + 4 < end and data[at + 4] == 0x65:
        return at + 5
    at, _ = read_number(data, at, end)
    return at


@lean_kernel
def skip_value(data: Bytes, at: int, end: int) -> int:
    """Skip the JSON value at `at`; returns the position after it, or a failure."""
    objects = np.uint64(0)  # a bit for each open object (1) and array (0), the innermost lowest
    depth = 0
    while at < end:
        c = data[at]
        if c == 0x7B or c == 0x5B:
            if depth == _DEPTH_MAX:
                return failure(TOO_DEEP, 0)
            objects = (objects << np.uint64(1)) | np.uint64(c == 0x7B)
            depth += 1
            at = skip_space(data, at + 1, end)
            done = at < end and data[at] == c + 2  # } after {, ] after [
            if done:
                at += 1
                depth -= 1
                objects >>= np.uint64(1)
        else:
            at = read_scalar(data, at, end)
            if at < 0:
                return failure(NOT_JSON, 0)
            done = True
        while done:
            if depth == 0:
                return at
            at = skip_space(data, at, end)
            if at >= end:
                return failure(NOT_JSON, 0)
            if data[at] == (0x7D if objects & np.uint64(1) else 0x5D):
                at += 1
                depth -= 1
                objects >>= np.uint64(1)
                continue
            if data[at] != 0x2C:
                return failure(NOT_JSON, 0)
            at = skip_space(data, at + 1, end)
            done = False
        if objects & np.uint64(1):
            at, _, _ = read_name(data, at, end)
            if at < 0:
                return at
    return failure(NOT_JSON, 0)


@part
def read_name(data: Bytes, at: int, end: int) -> tuple[int, int, bool]:
    """Read a member's name and colon: (position of the value or a failure, end of the name, whether it has escapes)."""
    if at >= end or data[at] != 0x22:
        return failure(NOT_JSON, 0), 0, False
    last, escaped = read_string(data, at, end)
    if last < 0:
        return failure(NOT_JSON, 0), 0, False
    at = skip_space(data, last, end)
    if at >= end or data[at] != 0x3A:
        return failure(NOT_JSON, 0), 0, False
    return skip_space(data, at + 1, end), last - 1, escaped


@part
def read_int(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """Read the well-formed integer `data[at:end]`: (value, whether it fits 64 bits)."""
    negative = data[at] == 0x2D
    value = 0  # accumulated below zero, where the range of int64 is one wider
    for i in range(at + 1 if negative else at, end):
        digit = np.int64(data[i]) - 0x30
        if value < _TENTH_OF_MIN or (value == _TENTH_OF_MIN and digit > 8):
            return 0, False
        value = value * 10 - digit
    if negative:
        return value, True
    return -value, value != _INT_MIN


@lean_kernel
def read_moment(data: Bytes, at: int, end: int, power: int) -> tuple[int, bool]:
    """Read the well-formed number `data[at:end]` times 10**`power`: (microseconds, whether they fit).

    Digits beyond the microsecond are cut off: the result is rounded down.
    """
    negative = data[at] == 0x2D
    i = at + 1 if negative else at
    value = 0
    scale = power
    is_cut = False
    dot = False
    while i < end and (data[i] == 0x2E or 0x30 <= data[i] <= 0x39):
        if data[i] == 0x2E:
            dot = True
        elif value <= _TENTH_OF_MAX:
            value = value * 10 + np.int64(data[i]) - 0x30
            scale -= 1 if dot else 0
        else:
            is_cut |= data[i] != 0x30
            scale += 0 if dot else 1
        i += 1
    scale += _exponent(data, i, end)
    while scale > 0 and value != 0:
        if value > _TENTH_OF_MAX:
            return 0, False
        value *= 10
        scale -= 1
    while scale < 0 and value != 0:
        is_cut |= value % 10 != 0
        value //= 10
        scale += 1
    return (-value - (1 if is_cut else 0) if negative else value), True


@part
def read_float(data: Bytes, at: int, end: int) -> tuple[float, bool]:
    """Read the well-formed number `data[at:end]`: (value, whether it is correctly rounded)."""
    i = at + 1 if data[at] == 0x2D else at
    digits = 0
    scale = 0
    dot = False
    while i < end:
        c = data[i]
        if c == 0x2E:
            dot = True
        elif 0x30 <= c <= 0x39:
            if digits > _DIGITS_MAX // 10 - 1:
                return 0.0, False
            digits = digits * 10 + np.int64(c - 0x30)
            scale -= 1 if dot else 0
        else:
            break
        i += 1
    scale += _exponent(data, i, end)
    if not -22 <= scale <= 22:
        return 0.0, False
    value = digits / _POWERS[-scale] if scale < 0 else digits * _POWERS[scale]
    return (-value if data[at] == 0x2D else value), True


@part
def _exponent(data: Bytes, at: int, end: int) -> int:
    """Read the rest `data[at:end]` of a well-formed number: `e`, a sign, digits; or nothing. At most _EXPONENT_MAX."""
    if at >= end:
        return 0
    down = data[at + 1] == 0x2D
    exponent = 0
    for i in range(at + 2 if down or data[at + 1] == 0x2B else at + 1, end):
        exponent = min(exponent * 10 + np.int64(data[i] - 0x30), _EXPONENT_MAX)
    return -exponent if down else exponent


@part
def pair(data: Bytes, at: int) -> int:
    """The number of two digits at `at`, or a large negative number if they are not digits."""
    tens, ones = np.int64(data[at]) - 0x30, np.int64(data[at + 1]) - 0x30
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -10_000


@lean_kernel
def days_before(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the proleptic Gregorian calendar."""
    years = year - 1
    days = years * 365 + years // 4 - years // 100 + years // 400 - 719_162
    for i in range(month - 1):
        days += _MONTH_DAYS[i]
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    return days + day - 1 + (1 if leap and month > 2 else 0)


@lean_kernel
def read_time(data: Bytes, at: int, end: int) -> tuple[int, bool]:
    """Read ISO 8601 `YYYY-MM-DDTHH:MM[:SS[.digits]][Z|+HH:MM|+HHMM]`: (µs since 1970, whether it is a time).

    Without a zone the time is UTC. The T may be a space; digits beyond the sixth are cut off; years are 0001 to 9999;
    there are no leap seconds.
    """
    if end - at < 16 or data[at + 4] != 0x2D or data[at + 7] != 0x2D or data[at + 13] != 0x3A:
        return 0, False
    if data[at + 10] != 0x54 and data[at + 10] != 0x74 and data[at + 10] != 0x20:
        return 0, False
    year = pair(data, at) * 100 + pair(data, at + 2)
    month, day, hour, minute = pair(data, at + 5), pair(data, at + 8), pair(data, at + 11), pair(data, at + 14)
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    if year < 1 or not 1 <= month <= 12 or not 0 <= hour <= 23 or not 0 <= minute <= 59:
        return 0, False
    if not 1 <= day <= _MONTH_DAYS[month - 1] + (1 if leap and month == 2 else 0):
        return 0, False
    micros = ((days_before(year, month, day) * 24 + hour) * 60 + minute) * 60_000_000
    at += 16
    if at < end and data[at] == 0x3A:
        if end - at < 3 or not 0 <= pair(data, at + 1) <= 59:
            return 0, False
        micros += pair(data, at + 1) * 1_000_000
        at += 3
        if at < end and data[at] == 0x2E:
            last = read_digits(data, at + 1, end)
            if last == at + 1:
                return 0, False
            unit = 100_000
            for i in range(at + 1, min(last, at + 7)):
                micros += (np.int64(data[i]) - 0x30) * unit
                unit //= 10
            at = last
    if at == end or (at + 1 == end and (data[at] | 0x20) == 0x7A):
        return micros, True
    colon = 1 if end - at == 6 and data[at + 3] == 0x3A else 0
    if end - at != 5 + colon or (data[at] != 0x2B and data[at] != 0x2D):
        return 0, False
    hour, minute = pair(data, at + 1), pair(data, at + 3 + colon)
    if not 0 <= hour <= 23 or not 0 <= minute <= 59:
        return 0, False
    shift = (hour * 60 + minute) * 60_000_000
    return (micros + shift if data[at] == 0x2D else micros - shift), True


@lean_kernel
def is_base64(data: Bytes, at: int, end: int) -> bool:
    r"""Whether the string `data[at:end]` is padded base64; only `\/` may be escaped in it."""
    letters = 0
    padding = 0
    i = at
    while i < end:
        c = data[i]
        if c == 0x5C:
            i += 1
            c = data[i]
            if c != 0x2F:
                return False
        if c == 0x3D:
            padding += 1
        elif padding or base64_value(int(c)) < 0:
            return False
        else:
            letters += 1
        i += 1
    return (letters + padding) % 4 == 0 and padding <= 2 and letters % 4 != 1


@lean_kernel
def named_float(data: Bytes, at: int, end: int) -> int:
    """The bits of the float named NaN, Infinity or -Infinity; 0 for any other text."""
    if end - at == 3 and is_word(data, at, end + 1, _NAN):
        return _NAN_BITS
    start = at + 1 if data[at] == 0x2D else at
    if end - start == 8 and is_word(data, start, end, _INFI) and is_word(data, start + 4, end, _NITY):
        return _INFINITY_BITS if start == at else _MINUS_INFINITY_BITS
    return 0
