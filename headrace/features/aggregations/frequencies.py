"""TopK and CountBy: how often each value came."""

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

    The most frequent value is first; equal counts are in a fixed order: numbers ascending, texts by their hashes. Exact
    while no hop of the window brings more than `keep` different values. Of a fuller hop `keep` values are known, a
    sample in which one with a share s of the hop's events is with a probability of at least 1 - exp(-s * keep / 2), for
    a share of 5 % and 128: 96 %, and it needs to be in one hop of the window only; how often they came is estimated by
    a sketch, to within 1 / keep of the events of the fuller hops nearly always, mostly to much less
    (tallies/count_sketch.py). So let `keep`, up to 4096, be what a hop mostly brings, or some times 1 / s of the least
    share that matters.

    An entity takes 24 bytes of memory for each value in each hop of the window, 72 for each of `keep` in fuller hops,
    and up to as much again to grow; in Redis what the values take, texts as they are and numbers some bytes each, a
    byte or two for the count of each, and in fuller hops 4 to 8 bytes for each of `keep`.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(top=TopK("state", k=1, windows="lifetime"))
    {'top_lifetime': ['on'], 'top_count_lifetime': [3]}
    """

    value: Value
    _: KW_ONLY
    k: int
    keep: int = 128

    def problem(self) -> str | None:
        """`k` outside of 1 to `keep`."""
        return None if 1 <= self.k <= self.keep else f"k={self.k}; write 1 to keep={self.keep}"

    def state(self, types: Types) -> Tally:
        """The values and counts of each tile."""
        return _top(self.value, types, self.k, self.keep)


@aggregation
class CountBy(Windowed):
    """How often each value came: the values and their counts, two lists `<name>_<window>` and `<name>_count_<window>`.

    It is `TopK` of all `keep` values, with its bounds and its order.

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
