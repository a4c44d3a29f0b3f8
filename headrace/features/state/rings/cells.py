"""The algebra of a tile: each code has an initial value, `update` with one event, and `merge` with another tile.

    code      cells                                  update with value x                  merge
    ADD       sum                                    sum + x                              a + b
    MIN, MAX  extreme                                the smaller, the larger              as update
    FIRST     time, id (2 halves), bits (2 halves)   the smaller tuple                    as update
    MOMENTS   count, mean, sum of squared deviations Chan et al. 1979, eq. 2.1            as update
    DECAYED   newest time, sum as of that time       scale the older side, add            as update
    INT_MIN,  upper and lower half of an integer     the smaller pair,                    as update
    INT_MAX                                          the larger pair

All are associative and commutative: MIN, MAX, FIRST, INT_MIN and INT_MAX exactly, ADD exactly for integers, the rest to
float rounding. A cell is float64; 64-bit integers are stored as two 32-bit halves, so they are exact. INT_MIN and
INT_MAX split a number into the nearest multiple of 2**32 and a signed rest, so that small numbers of either sign are
short when packed. The cells of one code are consecutive, from `cells[at]` on.
"""

import numpy as np

from headrace.kernels.compile import Float, Floats, Int, lean_kernel, part

ADD, MIN, MAX, FIRST, MOMENTS, DECAYED, INT_MIN, INT_MAX = 0, 1, 2, 3, 4, 5, 6, 7
WIDTH = {ADD: 1, MIN: 1, MAX: 1, FIRST: 5, MOMENTS: 3, DECAYED: 2, INT_MIN: 2, INT_MAX: 2}
TAKES_BITS = frozenset({FIRST, INT_MIN, INT_MAX})
"""Codes whose value is a bit column of the event, as opposed to a number column."""
ONE, TIME = -1, -2
_INF = np.inf
_LOW = np.int64(0xFFFFFFFF)


@part
def width_of(code: Int) -> Int:
    """Number of cells of a code."""
    if code == FIRST:
        return 5
    if code == MOMENTS:
        return 3
    return 2 if code >= DECAYED else 1


@part
def takes_bits(code: Int) -> bool:
    """Whether a code is one of `TAKES_BITS`."""
    return bool(code == FIRST or code >= INT_MIN)


@part
def start_value(code: Int, cell: Int) -> float:
    """Value of a cell before its first event."""
    if code in (MIN, FIRST) or (code == INT_MIN and cell == 0):
        return _INF
    if code == MAX or (code in (DECAYED, INT_MAX) and cell == 0):
        return -_INF
    return 0.0


@part
def add_number(cells: Floats, at: Int, code: Int, value: Float) -> None:
    """Add a number, of an event or of another tile, to the single cell of ADD, MIN or MAX."""
    if code == ADD:
        cells[at] += value
    elif code == MIN:
        cells[at] = min(cells[at], value)
    else:
        cells[at] = max(cells[at], value)


@part
def update(cells: Floats, at: Int, code: Int, param: float, value: float, bits: Int, time: Int, event_id: Int) -> None:
    """Add one event, given by its number `value` (or `bits` for codes in `TAKES_BITS`), time and id."""
    if code <= MAX:
        add_number(cells, at, code, value)
    elif code == FIRST:
        if np.float64(time) <= cells[at]:
            keep_smaller(
                cells,
                at,
                np.float64(time),
                np.float64((event_id >> np.int64(32)) & _LOW),
                np.float64(event_id & _LOW),
                np.float64(bits >> np.int64(32)),
                np.float64(bits & _LOW),
            )
    elif code == MOMENTS:
        add_moments(cells, at, 1.0, value, 0.0)
    elif code == DECAYED:
        add_decayed(cells, at, param, np.float64(time), value)
    else:
        upper = (bits >> np.int64(32)) + ((bits >> np.int64(31)) & np.int64(1))
        keep_extreme(cells, at, code, np.float64(upper), np.float64(bits - (upper << np.int64(32))))


@part
def merge(into: Floats, to: Int, cells: Floats, at: Int, code: Int, param: float) -> None:
    """Merge the cells at `cells[at]` into those of the same code at `into[to]`."""
    value = cells[at]
    if code <= MAX:
        add_number(into, to, code, value)
    elif code == FIRST:
        keep_smaller(into, to, value, cells[at + 1], cells[at + 2], cells[at + 3], cells[at + 4])
    elif code == MOMENTS:
        if value > 0.0:
            add_moments(into, to, value, cells[at + 1], cells[at + 2])
    elif code >= INT_MIN:
        keep_extreme(into, to, code, value, cells[at + 1])
    elif value > -_INF:
        add_decayed(into, to, param, value, cells[at + 1])


@lean_kernel
def keep_smaller(cells: Floats, at: Int, c0: Float, c1: Float, c2: Float, c3: Float, c4: Float) -> None:
    """Replace the FIRST cells if (c0, ..., c4) is smaller."""
    smaller = False
    if c0 != cells[at]:
        smaller = bool(c0 < cells[at])
    elif c1 != cells[at + 1]:
        smaller = bool(c1 < cells[at + 1])
    elif c2 != cells[at + 2]:
        smaller = bool(c2 < cells[at + 2])
    elif c3 != cells[at + 3]:
        smaller = bool(c3 < cells[at + 3])
    else:
        smaller = bool(c4 < cells[at + 4])
    if smaller:
        cells[at] = c0
        cells[at + 1] = c1
        cells[at + 2] = c2
        cells[at + 3] = c3
        cells[at + 4] = c4


@lean_kernel
def keep_extreme(cells: Floats, at: Int, code: Int, upper: Float, lower: Float) -> None:
    """Replace the INT_MIN (INT_MAX) cells if the number of the given halves is smaller (larger)."""
    is_equal = bool(upper == cells[at])
    is_less = bool(upper < cells[at]) or (is_equal and bool(lower < cells[at + 1]))
    is_more = bool(upper > cells[at]) or (is_equal and bool(lower > cells[at + 1]))
    if is_less if code == INT_MIN else is_more:
        cells[at] = upper
        cells[at + 1] = lower


@lean_kernel
def add_moments(cells: Floats, at: Int, count: Float, mean: Float, squares: Float) -> None:
    """Add a sample of `count` numbers to the MOMENTS cells; a single number is (1, x, 0)."""
    before = cells[at]
    step = mean - cells[at + 1]
    share = count / (before + count)
    cells[at] = before + count
    cells[at + 1] += step * share
    cells[at + 2] += squares + step * step * (before * share)


@lean_kernel
def add_decayed(cells: Floats, at: Int, half_life: float, time: Float, value: Float) -> None:
    """Add `value` as of `time` to the DECAYED cells."""
    newest = cells[at]
    if time >= newest:
        cells[at + 1] = cells[at + 1] * np.exp2((newest - time) / half_life) + value
        cells[at] = time
    else:
        cells[at + 1] += value * np.exp2((time - newest) / half_life)
