"""Compiled parts of the learners: gather rows, pool bags, add up gradients, match a candidate with a list, rank.

Arrays are C-contiguous. `rows` are int64 row numbers of a table, -1 where an id has no row: it reads as zeros and
takes no gradient. W is the width of a row: a vector and, as its last element, a linear weight. Sums run in the order
of the batch, in float64, so a step is a function of the batch alone.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.compile import kernel
from headrace.features.kernels.hashing import mix
from headrace.learners.inputs import PAD

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@kernel
def init_rows(ids: Ints, rows: Ints, seed: np.uint64, scale: float, weights: Floats) -> None:
    """Set `weights[rows]` (n, W) by the ids alone: vectors uniform in [-scale, scale), linear weight 0."""
    for i in range(rows.size):
        word = mix(int(np.uint64(ids[i]) ^ seed))
        width = weights.shape[1] - 1
        for j in range(width):
            word = mix(int(word))
            unit = np.float64(word >> np.uint64(11)) * (1.0 / 9007199254740992.0)
            weights[rows[i], j] = scale * (2.0 * unit - 1.0)
        weights[rows[i], width] = 0.0


@kernel
def gather(weights: Floats, rows: Ints, column: int, out: Floats) -> None:
    """`out[:, column]` (B, W) = `weights[rows]` (B, W); zeros where the row is -1."""
    for i in range(rows.size):
        row = rows[i]
        for j in range(weights.shape[1]):
            out[i, column, j] = weights[row, j] if row >= 0 else 0.0


@kernel
def gather_elements(weights: Floats, rows: Ints, out: Floats) -> None:
    """`out` (R, L, W) = `weights[rows]` for rows (R, L); zeros where the row is -1."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            row = rows[i, k]
            for j in range(weights.shape[1]):
                out[i, k, j] = weights[row, j] if row >= 0 else 0.0


@kernel
def pool(weights: Floats, rows: Ints, run: Ints, column: int, total: Doubles, out: Floats) -> None:
    """`out[i, column]` (B, W) = mean over the present elements of bag `run[i]`; rows (R, L); zeros for an empty bag.

    Runs are 0, 0, 1, 1, ..: each bag is pooled once, at the first row that has it. `total` (W,) is scratch.
    """
    width = weights.shape[1]
    for i in range(run.size):
        if i > 0 and run[i] == run[i - 1]:
            for j in range(width):
                out[i, column, j] = out[i - 1, column, j]
            continue
        total[:] = 0.0
        present = 0
        for k in range(rows.shape[1]):
            row = rows[run[i], k]
            if row >= 0:
                present += 1
                for j in range(width):
                    total[j] += weights[row, j]
        for j in range(width):
            out[i, column, j] = total[j] / max(present, 1)


@kernel
def runs(bag: Ints, run: Ints) -> int:
    """Number the runs of equal consecutive rows of `bag` (B, L) into `run` (B,); returns how many there are."""
    last = 0
    for i in range(bag.shape[0]):
        if i > 0:
            for k in range(bag.shape[1]):
                if bag[i, k] != bag[i - 1, k]:
                    last += 1
                    break
        run[i] = last
    return last + 1 if bag.shape[0] else 0


@kernel
def claim(rows: Ints, slots: Ints, unique: Ints, count: int) -> int:
    """Give each distinct row of `rows` (n,) the next slot, in order of first appearance.

    `slots` (row capacity,) is -1 for rows without a slot; `unique` receives the rows. Returns the number of slots so
    far.
    """
    for i in range(rows.size):
        row = rows[i]
        if row >= 0 and slots[row] < 0:
            slots[row] = count
            unique[count] = row
            count += 1
    return count


@kernel
def add_gradients(rows: Ints, slots: Ints, grads: Floats, column: int, scale: float, out: Doubles) -> None:
    """Add `scale * grads[:, column]` (B, W) of each row to its slot of `out` (unique, W)."""
    for i in range(rows.size):
        if rows[i] >= 0:
            slot = slots[rows[i]]
            for j in range(out.shape[1]):
                out[slot, j] += scale * grads[i, column, j]


@kernel
def add_pooled(
    rows: Ints, run: Ints, slots: Ints, grads: Floats, column: int, scale: float, total: Doubles, out: Doubles
) -> None:
    """Spread `scale * grads[:, column]` (B, W) of pooled bags over their elements; rows (R, L), scratch (W,)."""
    width = out.shape[1]
    total[:] = 0.0
    for i in range(run.size):
        for j in range(width):
            total[j] += scale * grads[i, column, j]
        if i + 1 < run.size and run[i + 1] == run[i]:
            continue
        present = 0
        for k in range(rows.shape[1]):
            present += rows[run[i], k] >= 0
        for k in range(rows.shape[1]):
            row = rows[run[i], k]
            if row >= 0:
                for j in range(width):
                    out[slots[row], j] += total[j] / present
        total[:] = 0.0


@kernel
def add_elements(rows: Ints, slots: Ints, grads: Floats, scale: float, out: Doubles) -> None:
    """Add `scale * grads` (R, L, W) of bag elements to their slots; rows (R, L)."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            row = rows[i, k]
            if row >= 0:
                for j in range(out.shape[1]):
                    out[slots[row], j] += scale * grads[i, k, j]


@kernel
def touch(rows: Ints, now: int, seen: Ints, counts: Ints) -> None:
    """Note one more use, at `now`, of each row of `rows` (n,)."""
    for i in range(rows.size):
        if rows[i] >= 0:
            seen[rows[i]] = max(seen[rows[i]], now)
            counts[rows[i]] += 1


@kernel
def match(candidates: Ints, values: Ints, lengths: Ints, kind: int, out: Floats) -> None:
    """How the list row of each candidate holds it: kind 0 any (0/1), 1 count, 2 recency 1 / (1 + rank of the newest).

    `candidates` and `lengths` (B,) or (1,), `values` (B, N) or (1, N), newest first; `out` (B,). 1 ns an element. A
    missing candidate (PAD) matches nothing, not even a missing element.
    """
    for i in range(out.size):
        wanted = candidates[i if candidates.size > 1 else 0]
        if wanted == PAD:
            out[i] = 0.0
            continue
        row = i if lengths.size > 1 else 0
        found = 0
        first = -1
        for k in range(lengths[row]):
            if values[row, k] == wanted:
                found += 1
                if first < 0:
                    first = k
        if kind == 0:
            out[i] = 1.0 if found else 0.0
        elif kind == 1:
            out[i] = found
        else:
            out[i] = 1.0 / (1.0 + first) if found else 0.0


@kernel
def best_ranks(scores: Floats, labels: Floats, starts: Ints, ranks: Ints) -> None:
    """Rank (0 = top) of the best positive in each group, -1 without one; a tie with a negative counts against it.

    Group g is rows `starts[g]` to `starts[g + 1]`; scores and labels (B,), starts (G + 1,), ranks (G,).
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
