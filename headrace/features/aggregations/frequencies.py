"""TopK and CountBy: how often each value occurred."""

from dataclasses import KW_ONLY
from functools import partial

import numpy as np

from headrace.features.aggregations.aggregation import Arrays, Output, Tally, Types, Windowed, aggregation
from headrace.features.answer import Lists
from headrace.features.argument_types import Value
from headrace.features.expressions.event_columns import DTYPE_OF_KIND
from headrace.features.state.lists.update import FLOAT
from headrace.features.state.tallies.read import TOP


@aggregation
class TopK(Windowed):
    """The `k` most frequent values and their counts, as two lists: `<name>_<window>` and `<name>_count_<window>`.

    The most frequent value is first. Values with equal counts are in a fixed order: numbers ascending, texts by their
    hashes. The result is exact as long as no hop of the window has more than `keep` distinct values.

    A fuller hop keeps a sample of `keep` values. A value with a share s of the hop's events is in the sample with a
    probability of at least 1 - exp(-s * keep / 2), which is 96 % for a share of 5 % and keep=128, and it needs to be in
    the sample of only one hop of the window. Counts are then estimated by a sketch (tallies/count_sketch.py); the error
    is almost always below 1 / keep of the events of the fuller hops, and usually much smaller. Set `keep`, up to 4096,
    to the number of values that a hop usually has, or to several times 1 / s for the smallest share s that matters.

    An entity takes 24 bytes of memory for each value in each hop of the window, 72 bytes times `keep` in fuller hops,
    and up to as much again as room to grow. In Redis it takes the size of the values (texts as they are, a few bytes
    per number), a byte or two for each count, and in fuller hops 4 to 8 bytes times `keep`.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(top=TopK("state", k=1, windows="lifetime"))
    {'top_lifetime': ['on'], 'top_count_lifetime': [3]}
    """

    value: Value
    _: KW_ONLY
    k: int
    keep: int = 128

    def problem(self) -> str | None:
        """Report a `k` outside of 1 to `keep`."""
        return None if 1 <= self.k <= self.keep else f"k={self.k}; write 1 to keep={self.keep}"

    def state(self, types: Types) -> Tally:
        """The values and counts of each tile."""
        return _top(self.value, types, self.k, self.keep)


@aggregation
class CountBy(Windowed):
    """All values and their counts, as two lists: `<name>_<window>` and `<name>_count_<window>`.

    Equivalent to `TopK` with `k=keep`, with the same order and the same error bounds in fuller hops.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(states=CountBy("state", windows="lifetime"))
    {'states_lifetime': ['on', 'off'], 'states_count_lifetime': [3, 1]}
    """

    value: Value
    _: KW_ONLY
    keep: int = 32

    def state(self, types: Types) -> Tally:
        """The values and counts of each tile."""
        return _top(self.value, types, self.keep, self.keep)


def _top(value: Value, types: Types, width: int, keep: int) -> Tally:
    kind = types.kind(value)
    values = Output(f"list[{DTYPE_OF_KIND[kind]}]", partial(_read_keys, kind), width=width)
    counts = Output("list[int]", _read_counts, suffix="count", width=width)
    return Tally(value, TOP, keep, (values, counts), width=width)


def _read_keys(kind: int, tally: Arrays) -> Lists:
    keys, _, lengths, _ = tally.outputs
    return Lists(keys.view(np.float64) if kind == FLOAT else keys, lengths)


def _read_counts(tally: Arrays) -> Lists:
    return Lists(tally.outputs[1], tally.outputs[2])
