"""Distinct: the number of different values."""

from dataclasses import KW_ONLY

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Arrays, Output, Tally, Types, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.tallies.read import DISTINCT


@aggregation
class Distinct(Windowed):
    """Number of different values that are not null; int.

    Exact while no hop of the window brings more than `keep` different values. Of a fuller hop the `keep` values with
    the smallest hashes are kept, and the number is estimated from the values of all hops whose hashes are as small: a
    standard error of 1 / sqrt(keep - 2) at most, 9 % for 128, 3 % for 1024 (Beyer et al. 2007, "On synopses for
    distinct-value estimation under multiset operations", sections 3.3 and 4).

    An entity takes 24 bytes of memory for each value in each hop of the window, at most `keep` of them, and up to as
    much again to grow; in Redis what the values take: texts as they are, numbers some bytes each.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(states=Distinct("state", windows="1h"))
    {'states_1h': 2}
    """

    value: Value
    _: KW_ONLY
    keep: int = 128

    def state(self, types: Types) -> Tally:  # noqa: ARG002
        """The different values of each tile."""
        return Tally(self.value, DISTINCT, self.keep, (Output("int", _read),))


def _read(tally: Arrays) -> NDArray[np.int64]:
    return np.rint(tally.outputs[3]).astype(np.int64)
