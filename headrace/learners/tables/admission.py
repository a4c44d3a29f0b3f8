"""Compiled kernels of admission: they count the uses of a batch's ids, and give rows to ids with enough uses.

A batch is laid out in segments as in `headrace.learners.tables.embedding`; arrays are as in
`headrace.learners.tables.kernels`. Rows are assigned in the order of the batch, segment by segment.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Int, kernel, lean_kernel
from headrace.kernels.hashing import mix
from headrace.kernels.id_map import FREE, HIGH, add_row, find_row
from headrace.learners.inputs import PAD

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Tuple = tuple[Any, ...]
"""One array per table, all of one type, as numba requires for indexing."""


@kernel
def count_uses(
    ids: Ints,
    rows: Ints,
    starts: Ints,
    table_of: Ints,
    requests: Ints,
    runs: Ints,
    now: int,
    seen: Tuple,
    counts: Tuple,
) -> tuple[Bools, Bools]:
    """Count the uses of a batch's ids, and set the last use of their rows to `now`.

    An id that equals the previous example's in the same request does not count as a use; `requests` (requests + 1,) are
    the first examples of each request, and B. Ids of bags, whose runs are (J, B), always count. A table that lacks a
    row for one of the ids is left unchanged.

    Returns:
        is_first (n,), true for ids that count as a use; lacking (T,), true for tables that were left unchanged.
    """
    is_first, lacking = np.empty(rows.size, np.bool_), np.zeros(len(seen), np.bool_)
    fields, begins = table_of.size - runs.shape[0], np.zeros(runs.shape[1], np.bool_)
    begins[:1] = True
    for r in range(requests.size - 1):
        if requests[r] < requests[r + 1]:
            begins[requests[r]] = True
    for s in range(table_of.size):
        for position in range(starts[s], starts[s + 1]):
            is_repeated = s < fields and not begins[position - starts[s]] and ids[position] == ids[position - 1]
            is_first[position] = not is_repeated
            if rows[position] < 0 and ids[position] != PAD:
                lacking[table_of[s]] = True
    for s in range(table_of.size):
        if not lacking[table_of[s]]:
            last, count = seen[table_of[s]], counts[table_of[s]]
            for position in range(starts[s], starts[s + 1]):
                row = rows[position]
                if row >= 0 and is_first[position]:
                    last[row] = max(last[row], now)
                    count[row] += 1
    return is_first, lacking


@kernel
def admit_missing(
    maps: Tuple,
    arrays: Tuple,
    first_values: Tuple,
    table_of: Ints,
    starts: Ints,
    ids: Ints,
    rows: Ints,
    is_first: Bools,
    admits: Bools,
    now: int,
) -> Int:
    """Add rows for ids of a batch without one, in order, and count the batch's uses, in tables with true `admits`.

    Returns -1, or the number of a table that must grow first. After growing it, call again: the call continues where
    this one stopped, since uses are counted at the end.

    Args:
        maps: lines, counts and free rows of the tables' maps, each a tuple of one array per table.
        arrays: weights, states, last uses, uses, ids and scratch slots, each a tuple of one array per table.
        first_values: seeds (T,), scales (T,) and a tuple of the states of new rows.
        table_of, starts, ids, is_first: the batch; see `count_uses`.
        rows: (n,) rows of the ids, changed in place.
        admits: (T,) mask of the tables to change.
        now: event time.
    """
    _, _, seen, counts, _, _ = arrays
    for s in range(table_of.size):
        t = table_of[s]
        if admits[t]:
            for position in range(starts[s], starts[s + 1]):
                if rows[position] < 0 and ids[position] != PAD:
                    rows[position] = _add_id(t, ids[position], maps, arrays, first_values)
                    if rows[position] < 0:
                        return np.int64(t)
    for s in range(table_of.size):
        t = table_of[s]
        if admits[t]:
            for position in range(starts[s], starts[s + 1]):
                if is_first[position]:
                    touch_rows(rows[position : position + 1], now, seen[t], counts[t])
    return np.int64(-1)


@kernel
def _add_id(t: Int, key: Int, maps: Tuple, arrays: Tuple, first_values: Tuple) -> Int:
    """Row of one id in table `t`, added and initialised if it is new; -1 if the map or the arrays are full."""
    lines, map_counts, free = maps
    weights, states, seen, counts, owners, _ = arrays
    seeds, scales, initial = first_values
    row = find_row(lines[t], key)
    if row >= 0:
        return row
    # The map may assign the row after the last one, so the arrays must have room for it first.
    if map_counts[t][FREE] == 0 and map_counts[t][HIGH] >= weights[t].shape[0]:
        return np.int64(-1)
    row = add_row(lines[t], map_counts[t], free[t], key)
    if row >= 0:
        init_row(key, seeds[t], scales[t], initial[t], weights[t][row], states[t][row])
        seen[t][row] = 0
        counts[t][row] = 0
        owners[t][row] = key
    return row


@kernel
def touch_rows(rows: Ints, now: int, seen: Ints, counts: Ints) -> None:
    """Count one use of each row of `rows` (n,), and set its last use to `now` or later."""
    for i in range(rows.size):
        if rows[i] >= 0:
            seen[rows[i]] = max(seen[rows[i]], now)
            counts[rows[i]] += 1


@kernel
def init_rows(
    ids: Ints, rows: Ints, is_new: Bools, seed: np.uint64, scale: float, initial: Floats, arrays: Tuple
) -> None:
    """Initialise the rows of the new ones of `ids` (n,) in all `arrays` of a table, see `EmbeddingTable.arrays`."""
    weights, state, seen, counts, owners, _ = arrays
    for i in range(rows.size):
        if is_new[i]:
            init_row(ids[i], seed, scale, initial, weights[rows[i]], state[rows[i]])
            seen[rows[i]] = 0
            counts[rows[i]] = 0
            owners[rows[i]] = ids[i]


@lean_kernel
def init_row(key: Int, seed: np.uint64, scale: float, initial: Floats, weights: Floats, state: Floats) -> None:
    """Set the vector, uniform in [-scale, scale) by seed and id, the linear weight 0 and the state `initial` (S,)."""
    word, width = mix(int(np.uint64(key) ^ seed)), weights.size - 1
    for j in range(width):
        word = mix(int(word))
        unit = np.float64(word >> np.uint64(11)) * (1.0 / 9007199254740992.0)
        weights[j] = scale * (2.0 * unit - 1.0)
    weights[width] = 0.0
    for j in range(state.size):
        state[j] = initial[j]
