"""Distinct: how many different values."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregation import Source, Value, Windows
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.state.layout import Reading
from headrace.features.state.operations import Outputs
from headrace.features.state.tallies.read import DISTINCT


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Distinct:
    """Number of different values that are not null; int.

    Exact while no hop of the window brings more than `keep` different values. Of a fuller hop the `keep` values with
    the smallest hashes are kept, and the number is estimated from the values of all hops whose hashes are as small: a
    standard error of 1 / sqrt(keep - 2) at most, 9 % for 128, 3 % for 1024 (Beyer et al. 2007, "On synopses for
    distinct-value estimation under multiset operations", sections 3.3 and 4).

    An entity takes 24 bytes of memory for each value in each hop of the window, at most `keep` of them, and up to as
    much again to grow; in Redis what the values take: texts as they are, numbers some bytes each.
    """

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    keep: int = 128
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return [
            Reading(binder.feature("int", window.label), group, _read)
            for window, group, _ in binder.tallies(self, DISTINCT, self.keep)
        ]


def _read(outputs: Outputs, now_us: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: ARG001
    return np.rint(outputs[3]).astype(np.int64)
