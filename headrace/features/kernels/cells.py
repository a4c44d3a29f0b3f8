"""The algebra of a tile: for each code, `init`, `update` with one event, `merge` with another tile's cells.

    code      cells                                  update with value x                  merge
    ADD       sum                                    sum + x                              a + b
    MIN, MAX  extreme                                the smaller, the larger              the same
    FIRST     time, id (2 halves), bits (2 halves)   the smaller tuple                    the same
    MOMENTS   count, mean, sum of squared deviations Welford 1962                         Chan et al. 1979, eq. 2.1
    DECAYED   newest time, sum as of that time       scale the older side, add            the same

All are associative and commutative, MIN, MAX and FIRST to the bit, ADD to the bit for whole numbers, the rest to float
rounding. A cell is float64; 64-bit integers are kept as two halves of 32 bits, so they are exact.
"""

import numpy as np

from headrace.features.kernels.compile import Floats, Int, kernel

ADD, MIN, MAX, FIRST, MOMENTS, DECAYED = 0, 1, 2, 3, 4, 5
WIDTH = {ADD: 1, MIN: 1, MAX: 1, FIRST: 5, MOMENTS: 3, DECAYED: 2}
ONE, TIME = -1, -2
_INF = np.inf
_LOW = np.int64(0xFFFFFFFF)


@kernel
def width_of(code: Int) -> Int:
    """Number of cells of a code."""
    if code == FIRST:
        return 5
    if code == MOMENTS:
        return 3
    return 2 if code == DECAYED else 1


@kernel
def start_value(code: Int, cell: Int) -> float:
    """What a cell holds before its first event."""
    if code in (MIN, FIRST):
        return _INF
    if code == MAX or (code == DECAYED and cell == 0):
        return -_INF
    return 0.0


@kernel
def init(cells: Floats, code: Int) -> None:
    """Empty the cells of one code; cells (width,)."""
    for j in range(cells.size):
        cells[j] = start_value(code, j)


@kernel
def update(
    cells: Floats,
    code: Int,
    param: float,
    value: float,
    bits: Int,
    time: Int,
    event_id: Int,
) -> None:
    """Add one event: its number `value` (FIRST: its `bits`), time and id."""
    if code == ADD:
        cells[0] += value
    elif code == MIN:
        cells[0] = min(cells[0], value)
    elif code == MAX:
        cells[0] = max(cells[0], value)
    elif code == FIRST:
        if np.float64(time) <= cells[0]:
            _keep_smaller(
                cells,
                np.float64(time),
                np.float64((event_id >> np.int64(32)) & _LOW),
                np.float64(event_id & _LOW),
                np.float64(bits >> np.int64(32)),
                np.float64(bits & _LOW),
            )
    elif code == MOMENTS:
        cells[0] += 1.0
        step = value - cells[1]
        cells[1] += step / cells[0]
        cells[2] += step * (value - cells[1])
    else:
        _add_decayed(cells, param, np.float64(time), value)


@kernel
def merge(into: Floats, cells: Floats, code: Int, param: float) -> None:
    """Add another tile's cells of the same code."""
    if code == ADD:
        into[0] += cells[0]
    elif code == MIN:
        into[0] = min(into[0], cells[0])
    elif code == MAX:
        into[0] = max(into[0], cells[0])
    elif code == FIRST:
        _keep_smaller(into, cells[0], cells[1], cells[2], cells[3], cells[4])
    elif code == MOMENTS:
        if cells[0] > 0.0:
            count = into[0] + cells[0]
            step = cells[1] - into[1]
            into[1] += step * (cells[0] / count)
            into[2] += cells[2] + step * step * (into[0] * (cells[0] / count))
            into[0] = count
    else:
        _add_decayed(into, param, cells[0], cells[1])


@kernel
def _keep_smaller(cells: Floats, c0: float, c1: float, c2: float, c3: float, c4: float) -> None:
    if c0 != cells[0]:
        smaller = c0 < cells[0]
    elif c1 != cells[1]:
        smaller = c1 < cells[1]
    elif c2 != cells[2]:
        smaller = c2 < cells[2]
    elif c3 != cells[3]:
        smaller = c3 < cells[3]
    else:
        smaller = c4 < cells[4]
    if smaller:
        cells[0], cells[1], cells[2], cells[3], cells[4] = c0, c1, c2, c3, c4


@kernel
def _add_decayed(cells: Floats, half_life: float, time: float, value: float) -> None:
    if time >= cells[0]:
        cells[1] = cells[1] * np.exp2((cells[0] - time) / half_life) + value
        cells[0] = time
    else:
        cells[1] += value * np.exp2((time - cells[0]) / half_life)
