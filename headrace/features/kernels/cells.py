"""The algebra of a tile: for each code, `init`, `update` with one event, `merge` with another tile's cells.

    code      cells                                  update with value x                  merge
    ADD       sum                                    sum + x                              a + b
    MIN, MAX  extreme                                the smaller, the larger              the same
    FIRST     time, id (2 halves), bits (2 halves)   the smaller tuple                    the same
    MOMENTS   count, mean, sum of squared deviations Chan et al. 1979, eq. 2.1            the same
    DECAYED   newest time, sum as of that time       scale the older side, add            the same

All are associative and commutative, MIN, MAX and FIRST to the bit, ADD to the bit for whole numbers, the rest to float
rounding. A cell is float64; 64-bit integers are kept as two halves of 32 bits, so they are exact.
"""

import numpy as np

from headrace.features.kernels.compile import Floats, Int, lean_kernel, part

ADD, MIN, MAX, FIRST, MOMENTS, DECAYED = 0, 1, 2, 3, 4, 5
WIDTH = {ADD: 1, MIN: 1, MAX: 1, FIRST: 5, MOMENTS: 3, DECAYED: 2}
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
    return 2 if code == DECAYED else 1


@part
def start_value(code: Int, cell: Int) -> float:
    """What a cell holds before its first event."""
    if code in (MIN, FIRST):
        return _INF
    if code == MAX or (code == DECAYED and cell == 0):
        return -_INF
    return 0.0


@part
def init(cells: Floats, row: Int, slot: Int, first: Int, code: Int) -> None:
    """Empty the cells of one code, `cells[row, slot, first:]`; cells (rows, slots, k)."""
    for j in range(width_of(code)):
        cells[row, slot, first + j] = start_value(code, j)


@part
def update(
    cells: Floats,
    row: Int,
    slot: Int,
    first: Int,
    code: Int,
    param: float,
    value: float,
    bits: Int,
    time: Int,
    event_id: Int,
) -> None:
    """Add one event to `cells[row, slot, first:]`: its number `value` (FIRST: its `bits`), time and id."""
    if code == ADD:
        cells[row, slot, first] += value
    elif code == MIN:
        cells[row, slot, first] = min(cells[row, slot, first], value)
    elif code == MAX:
        cells[row, slot, first] = max(cells[row, slot, first], value)
    elif code == FIRST:
        if np.float64(time) <= cells[row, slot, first]:
            keep_smaller(
                cells,
                row,
                slot,
                first,
                np.float64(time),
                np.float64((event_id >> np.int64(32)) & _LOW),
                np.float64(event_id & _LOW),
                np.float64(bits >> np.int64(32)),
                np.float64(bits & _LOW),
            )
    elif code == MOMENTS:
        add_moments(cells, row, slot, first, 1.0, value, 0.0)
    else:
        add_decayed(cells, row, slot, first, param, np.float64(time), value)


@part
def merge(into: Floats, row: Int, cells: Floats, source: Int, slot: Int, first: Int, code: Int, param: float) -> None:
    """Add `cells[source, slot, first:]` to `into[row, 0, first:]`, cells of the same code."""
    value = cells[source, slot, first]
    if code == ADD:
        into[row, 0, first] += value
    elif code == MIN:
        into[row, 0, first] = min(into[row, 0, first], value)
    elif code == MAX:
        into[row, 0, first] = max(into[row, 0, first], value)
    elif code == FIRST:
        keep_smaller(
            into,
            row,
            0,
            first,
            value,
            cells[source, slot, first + 1],
            cells[source, slot, first + 2],
            cells[source, slot, first + 3],
            cells[source, slot, first + 4],
        )
    elif code == MOMENTS:
        if value > 0.0:
            add_moments(into, row, 0, first, value, cells[source, slot, first + 1], cells[source, slot, first + 2])
    elif value > -_INF:
        add_decayed(into, row, 0, first, param, value, cells[source, slot, first + 1])


@lean_kernel
def keep_smaller(
    cells: Floats, row: Int, slot: Int, first: Int, c0: float, c1: float, c2: float, c3: float, c4: float
) -> None:
    """Replace the FIRST cells if (c0, ..., c4) is smaller."""
    smaller = False
    if c0 != cells[row, slot, first]:
        smaller = c0 < cells[row, slot, first]
    elif c1 != cells[row, slot, first + 1]:
        smaller = c1 < cells[row, slot, first + 1]
    elif c2 != cells[row, slot, first + 2]:
        smaller = c2 < cells[row, slot, first + 2]
    elif c3 != cells[row, slot, first + 3]:
        smaller = c3 < cells[row, slot, first + 3]
    else:
        smaller = c4 < cells[row, slot, first + 4]
    if smaller:
        cells[row, slot, first] = c0
        cells[row, slot, first + 1] = c1
        cells[row, slot, first + 2] = c2
        cells[row, slot, first + 3] = c3
        cells[row, slot, first + 4] = c4


@lean_kernel
def add_moments(cells: Floats, row: Int, slot: Int, first: Int, count: float, mean: float, squares: float) -> None:
    """Add a sample of `count` numbers to the MOMENTS cells; a single number is (1, x, 0)."""
    held = cells[row, slot, first]
    step = mean - cells[row, slot, first + 1]
    share = count / (held + count)
    cells[row, slot, first] = held + count
    cells[row, slot, first + 1] += step * share
    cells[row, slot, first + 2] += squares + step * step * (held * share)


@lean_kernel
def add_decayed(cells: Floats, row: Int, slot: Int, first: Int, half_life: float, time: float, value: float) -> None:
    """Add `value` as of `time` to the DECAYED cells."""
    held = cells[row, slot, first]
    if time >= held:
        cells[row, slot, first + 1] = cells[row, slot, first + 1] * np.exp2((held - time) / half_life) + value
        cells[row, slot, first] = time
    else:
        cells[row, slot, first + 1] += value * np.exp2((time - held) / half_life)
