"""Distinct: the number of distinct values."""

from dataclasses import KW_ONLY

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Arrays, Output, Tally, Types, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.tallies.read import DISTINCT


@aggregation
class Distinct(Windowed):
    """Number of distinct non-null values; an int.

    Exact as long as no hop of the window has more than `keep` distinct values. A fuller hop keeps the `keep` values
    with the smallest hashes, and the number is estimated from the values of all hops whose hashes are as small. The
    standard error is at most 1 / sqrt(keep - 2): 9 % for 128, 3 % for 1024 (Beyer et al. 2007, "On synopses for
    distinct-value estimation under multiset operations", sections 3.3 and 4).

    An entity takes 24 bytes of memory for each value in each hop of the window, at most `keep` per hop, and up to as
    much again as room to grow. In Redis it takes the size of the values: texts as they are, a few bytes per number.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(states=Distinct("state", windows="1h"))
    {'states_1h': 2}
    """

    value: Value
    _: KW_ONLY
    keep: int = 128

    def state(self, types: Types) -> Tally:  # noqa: ARG002
        """The distinct values of each tile."""
        return Tally(self.value, DISTINCT, self.keep, (Output("int", _read),))


def _read(tally: Arrays) -> NDArray[np.int64]:
    return np.rint(tally.outputs[3]).astype(np.int64)
