"""Compiled kernels of the learners: gather rows, pool bags, sum gradients, match a candidate with a list, rank.

Arrays are C-contiguous. `rows` are int64 row numbers of a table, -1 for an id without a row, which reads as zeros and
takes no gradient. W is the width of a row: a vector and, as the last element, a linear weight. Sums run in float64 in
the order of the batch, so a step is a function of the batch alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Int, kernel, lean_kernel
from headrace.kernels.id_map import find_rows
from headrace.learners.inputs import PAD

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Tuple = tuple[Any, ...]
"""One array per table or per bag, all of one type, as numba requires for indexing."""


@kernel
def find(maps: Tuple, table_of: Ints, starts: Ints, ids: Ints, rows: Ints) -> None:
    """Find the row of each id (n,) in its segment's map, -1 if absent. Segment s is [starts[s], starts[s + 1])."""
    for s in range(table_of.size):
        find_rows(maps[table_of[s]], ids[starts[s] : starts[s + 1]], rows[starts[s] : starts[s + 1]])


@kernel
def lay_out(fields: Ints, bags: Tuple, starts: Ints, runs: Ints, ids: Ints) -> Int:
    """Write the ids of a batch into `ids`, segment by segment, and set `starts` (F + J + 1,); returns their number, n.

    `fields` (B, F). Bag j (B, L), or (1, L) for all examples: equal consecutive rows are written once, and `runs[j]`
    (B,) numbers them. O(B L). `ids` has room for all rows of every bag.
    """
    examples, count = fields.shape
    starts[0] = 0
    for s in range(count):
        for i in range(examples):
            ids[starts[s] + i] = fields[i, s]
        starts[s + 1] = starts[s] + examples
    for j in range(runs.shape[0]):
        starts[count + j + 1] = starts[count + j] + _lay_out_bag(bags[j], runs[j], ids[starts[count + j] :])
    return np.int64(starts[-1])


@kernel
def _lay_out_bag(bag: Ints, run: Ints, ids: Ints) -> Int:
    """Write each run of equal rows of `bag` once, and the run's number into `run` (B,); returns the number of ids."""
    length, last = bag.shape[1], -1
    run[:] = 0
    for i in range(bag.shape[0]):
        is_new = i == 0
        for k in range(length):
            if is_new:
                break
            is_new = bag[i, k] != bag[i - 1, k]
        if is_new:
            last += 1
            for k in range(length):
                ids[last * length + k] = bag[i, k]
        run[i] = last
    return np.int64((last + 1) * length)


@kernel
def gather(
    weights: Tuple,
    table_of: Ints,
    starts: Ints,
    rows: Ints,
    bag_runs: Ints,
    lengths: Ints,
    examples: Ints,
    out: Floats,
) -> None:
    """`out[i, s]` (n, S, W) = the row of example `examples[i]`'s id, for bags the mean of its ids' rows, or zeros.

    The last J segments are bags; `bag_runs` (J, B) are 0, 0, 1, 1, ..: each bag is pooled once, at its first example.
    `examples` (n,) ascend.
    """
    width, fields = out.shape[2], table_of.size - lengths.size
    for s in range(fields):
        table = weights[table_of[s]]
        for i in range(examples.size):
            row = rows[starts[s] + examples[i]]
            for j in range(width):
                out[i, s, j] = table[row, j] if row >= 0 else np.float32(0.0)
    for bag in range(lengths.size):
        s = fields + bag
        _pool(weights[table_of[s]], rows[starts[s] : starts[s + 1]], bag_runs[bag], lengths[bag], examples, out[:, s])


@kernel
def _pool(table: Floats, rows: Ints, run: Ints, length: int, examples: Ints, out: Floats) -> None:
    """`out` (n, W) = the mean of the present rows of each example's bag; rows (R * L,), run (B,)."""
    width = out.shape[1]
    total = np.empty(width, np.float64)
    # Equal consecutive bags are summed once: the mean is copied from the previous example.
    for i in range(out.shape[0]):
        bag = run[examples[i]]
        if i > 0 and bag == run[examples[i - 1]]:
            for j in range(width):
                out[i, j] = out[i - 1, j]
            continue
        total[:] = 0.0
        present = 0
        for position in range(bag * length, (bag + 1) * length):
            row = rows[position]
            if row >= 0:
                present += 1
                for j in range(width):
                    total[j] += table[row, j]
        for j in range(width):
            out[i, j] = total[j] / max(present, 1)


@kernel
def gather_elements(weights: Floats, rows: Ints, out: Floats) -> None:
    """`out` (R, L, W) = `weights[rows]` for rows (R, L); zeros for row -1."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            row = rows[i, k]
            for j in range(weights.shape[1]):
                out[i, k, j] = weights[row, j] if row >= 0 else 0.0


@lean_kernel
def mark_examples(mask: Bools, starts: Ints, runs: Ints, lengths: Ints, out: Bools) -> None:
    """`out` (B,) = whether an id of the example is marked in `mask` (n,)."""
    fields = starts.size - 1 - lengths.size
    out[:] = False
    for s in range(fields):
        for i in range(out.size):
            out[i] |= mask[starts[s] + i]
    for bag in range(lengths.size):
        is_marked = False
        for i in range(out.size):
            if i == 0 or runs[bag, i] != runs[bag, i - 1]:
                begin = starts[fields + bag] + runs[bag, i] * lengths[bag]
                is_marked = False
                for position in range(begin, begin + lengths[bag]):
                    is_marked |= mask[position]
            out[i] |= is_marked


@kernel
def sum_gradients(
    slots: Tuple,
    table_of: Ints,
    starts: Ints,
    rows: Ints,
    bag_runs: Ints,
    lengths: Ints,
    grads: Floats,
    elements: Tuple,
    scale: float,
) -> tuple[Ints, Ints, Doubles]:
    """Distinct rows of a batch, by table in order of first use, and the sums of their gradients times `scale`.

    `slots` holds -1 for each row of each table, before and after. `grads` (B, S, W); `elements` J x (R, L, W) or empty.

    Returns:
        unique (u,), bounds (T + 1,) of each table's part of it, totals (u, W).
    """
    unique, bounds = np.empty(rows.size, np.int64), np.zeros(len(slots) + 1, np.int64)
    for t in range(len(slots)):
        bounds[t + 1] = bounds[t]
        for s in range(table_of.size):
            if table_of[s] == t:
                bounds[t + 1] = _number_rows(rows[starts[s] : starts[s + 1]], slots[t], bounds[t + 1], unique)
    count = bounds[-1]
    totals, fields = np.zeros((count, grads.shape[2])), table_of.size - lengths.size
    for s in range(fields):
        _add_single(rows[starts[s] : starts[s + 1]], slots[table_of[s]], grads, s, scale, totals)
    for bag in range(lengths.size):
        s = fields + bag
        begin, end = starts[s], starts[s + 1]
        _add_pooled(rows[begin:end], bag_runs[bag], lengths[bag], slots[table_of[s]], grads, s, scale, totals)
        if elements[bag].size:
            _add_elements(rows[begin:end], slots[table_of[s]], elements[bag], scale, totals)
    for t in range(len(slots)):
        for u in range(bounds[t], bounds[t + 1]):
            slots[t][unique[u]] = -1
    return unique[:count], bounds, totals


@kernel
def _number_rows(rows: Ints, slot_of: Ints, count: int, unique: Ints) -> int:
    """Assign the next slots, from `count` on, to rows without a slot; returns the new number of slots."""
    for position in range(rows.size):
        row = rows[position]
        if row >= 0 and slot_of[row] < 0:
            slot_of[row] = count
            unique[count] = row
            count += 1
    return count


@kernel
def _add_single(rows: Ints, slot_of: Ints, grads: Floats, column: int, scale: float, out: Doubles) -> None:
    """Add the gradients (B, S, W) of a field of one id per example; rows (B,)."""
    for i in range(rows.size):
        if rows[i] >= 0:
            for j in range(grads.shape[2]):
                out[slot_of[rows[i]], j] += scale * grads[i, column, j]


@kernel
def _add_pooled(
    rows: Ints, run: Ints, length: int, slot_of: Ints, grads: Floats, column: int, scale: float, out: Doubles
) -> None:
    """Distribute the gradients (B, S, W) of pooled bags over their elements; rows (R * L,), run (B,)."""
    width = out.shape[1]
    total = np.zeros(width)
    # The gradients of all examples of one run are summed first, then distributed once over its elements.
    for i in range(run.size):
        for j in range(width):
            total[j] += scale * grads[i, column, j]
        if i + 1 < run.size and run[i + 1] == run[i]:
            continue
        present = 0
        for position in range(run[i] * length, (run[i] + 1) * length):
            present += rows[position] >= 0
        for position in range(run[i] * length, (run[i] + 1) * length):
            if rows[position] >= 0:
                for j in range(width):
                    out[slot_of[rows[position]], j] += total[j] / present
        total[:] = 0.0


@kernel
def _add_elements(rows: Ints, slot_of: Ints, grads: Floats, scale: float, out: Doubles) -> None:
    """Add `scale * grads` (R, L, W) of bag elements to their slots; rows (R * L,)."""
    flat = grads.reshape(-1, grads.shape[2])
    for position in range(rows.size):
        if rows[position] >= 0:
            for j in range(out.shape[1]):
                out[slot_of[rows[position]], j] += scale * flat[position, j]


@kernel
def match(candidates: Ints, values: Ints, lengths: Ints, kind: int, out: Floats) -> None:
    """Occurrences of each candidate in its list: kind 0 any (0/1), 1 count, 2 recency 1 / (1 + rank of the newest).

    `candidates` and `lengths` (B,) or (1,), `values` (B, N) or (1, N), newest first; `out` (B,). 1 ns per element. A
    missing candidate (PAD) matches nothing, not even a missing element.
    """
    for i in range(out.size):
        wanted = candidates[i if candidates.size > 1 else 0]
        if wanted == PAD:
            out[i] = 0.0
            continue
        row = i if lengths.size > 1 else 0
        matches = 0
        first = -1
        for k in range(lengths[row]):
            if values[row, k] == wanted:
                matches += 1
                if first < 0:
                    first = k
        if kind == 0:
            out[i] = 1.0 if matches else 0.0
        elif kind == 1:
            out[i] = matches
        else:
            out[i] = 1.0 / (1.0 + first) if matches else 0.0


@kernel
def best_ranks(scores: Floats, labels: Floats, starts: Ints, ranks: Ints) -> None:
    """Rank (0 = top) of the best positive in each group, -1 without one; a negative with an equal score ranks above.

    Group g is rows [starts[g], starts[g + 1]); scores and labels (B,), starts (G + 1,), ranks (G,).
    """
    for group in range(ranks.size):
        ranks[group] = -1
        best = -np.inf
        for i in range(starts[group], starts[group + 1]):
            if labels[i] > 0.5 and scores[i] > best:
                best = scores[i]
        if best == -np.inf:
            continue
        rank = 0
        for i in range(starts[group], starts[group + 1]):
            rank += labels[i] <= 0.5 and scores[i] >= best
        ranks[group] = rank
