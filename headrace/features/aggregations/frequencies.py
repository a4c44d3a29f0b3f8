"""TopK and CountBy: how often each value came."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Source, Value, Windows
from headrace.features.answer import Lists
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.expressions.event_columns import DTYPE_OF_KIND
from headrace.features.state.layout import Reading
from headrace.features.state.lists.update import FLOAT
from headrace.features.state.operations import Outputs
from headrace.features.state.tallies.read import TOP


@declared
@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """The `k` most frequent values, most frequent first, and their counts, as two lists: <name>_<window> and
    <name>_count_<window>.

    Equal counts are in a fixed order: numbers ascending, texts by their hashes. Exact while no hop of the window brings
    more than `keep` different values. Of a fuller hop `keep` values are known, a sample in which one with a share s of
    the hop's events is with a probability of at least 1 - exp(-s * keep / 2), for a share of 5 % and 128: 96 %, and it
    needs to be in one hop of the window only; how often they came is told by a sketch, to within 1 / keep of the events
    of the fuller hops nearly always, mostly to much less (tallies/count_sketch.py). So let `keep`, up to 4096, be what
    a hop mostly brings, or some times 1 / s of the least share that matters.

    An entity takes 24 bytes of memory for each value in each hop of the window, 72 for each of `keep` in fuller hops,
    and up to as much again to grow; in Redis what the values take, texts as they are and numbers some bytes each, a
    byte or two for the count of each, and in fuller hops 4 to 8 bytes for each of `keep`.
    """  # noqa: D205

    value: Value
    _: KW_ONLY
    k: int
    windows: Windows = ()
    keep: int = 128
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """Two list features a window.

        Raises:
            DeclarationError: `k` is not from 1 to `keep`.
        """
        if not 1 <= self.k <= self.keep:
            raise DeclarationError(f"{binder.path}: k={self.k}; write 1 to keep={self.keep}")
        return _readings(binder, self, self.k, self.keep)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class CountBy:
    """How often each value came: the values, most frequent first, and their counts, as two lists: <name>_<window> and
    <name>_count_<window>.

    It is `TopK` of all `keep` values, with its bounds and its order.
    """  # noqa: D205

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    keep: int = 32
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """Two list features a window."""
        return _readings(binder, self, self.keep, self.keep)


def _readings(binder: Binder, aggregation: TopK | CountBy, width: int, keep: int) -> list[Reading]:
    found = []
    for window, group, kind in binder.tallies(aggregation, TOP, keep, width=width):
        values = binder.feature(f"list[{DTYPE_OF_KIND[kind]}]", window.label, width=width)
        counts = binder.feature("list[int]", window.label, suffix="count", width=width)
        found += [Reading(values, group, partial(_read_keys, kind)), Reading(counts, group, _read_counts)]
    return found


def _read_keys(kind: int, outputs: Outputs, now_us: NDArray[np.int64]) -> Lists:  # noqa: ARG001
    keys, _, lengths, _ = outputs
    return Lists(keys.view(np.float64) if kind == FLOAT else keys, lengths)


def _read_counts(outputs: Outputs, now_us: NDArray[np.int64]) -> Lists:  # noqa: ARG001
    return Lists(outputs[1], outputs[2])
