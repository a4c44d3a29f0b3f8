"""Collect the state of a view's aggregations into a `Layout`, sharing equal state.

Equal expressions become one event column, equal cells of one (window, hop) one cell, equal lists and tallies one group.
Columns, cells and groups are in the order of their first use.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from headrace.errors import DeclarationError
from headrace.features.answer import Feature
from headrace.features.expressions.event_columns import EventColumns
from headrace.features.state.layout import RECORD_VERSION, Derived, Group, Layout, Reading
from headrace.features.state.lists.group import ListGroup
from headrace.features.state.rings.cells import WIDTH
from headrace.features.state.rings.group import RingGroup
from headrace.features.state.seen import KEEP_MAX as SEEN_MAX
from headrace.features.windows import Window
from headrace.schemas import Event, spec_of


@dataclass(slots=True)
class RingBuilder:
    """The cells of one window's tiles, collected while a view is bound.

    `items` are rows (code, first cell, flag column, value column) of `RingGroup.of`; `texts` describe them.
    """

    window: Window
    items: list[tuple[int, int, int, int]] = field(default_factory=list)
    params: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    width: int = 0

    def add(self, code: int, param: float, flag: int, column: int, text: str) -> range:
        """Add the cells of `code`, or find those added with the same `text`; returns their indexes."""
        if text in self.texts:
            first = self.items[self.texts.index(text)][1]
        else:
            first = self.width
            self.texts.append(text)
            self.items.append((code, first, flag, column))
            self.params.append(param)
            self.width += WIDTH[code]
        return range(first, first + WIDTH[code])

    def group(self) -> RingGroup:
        """The finished group."""
        text = f"ring {self.window.window_us}/{self.window.hop_us}: " + "; ".join(self.texts)
        return RingGroup.of(self.window, np.array(self.items, np.int64), np.array(self.params, np.float64), text)


class LayoutBuilder:
    """Collects columns, groups and readings of one view.

    Attributes:
        request: fields of the request and their types.
        flags, numbers, bits: columns of the events, as in `Events`.
        spans: description of a window or argument -> microseconds it looks back; a ttl must not be shorter.
    """

    def __init__(
        self,
        view: str,
        sources: tuple[type[Event], ...],
        entity: str,
        request: Mapping[str, pl.DataType] | None = None,
    ) -> None:
        self.view = view
        self.sources = sources
        self.request = dict(request or {})
        self.flags = EventColumns({source: {} for source in sources})
        self.numbers = EventColumns({source: {} for source in sources})
        self.bits = EventColumns({source: {} for source in sources})
        self.spans: dict[str, int] = {}
        self._entity = entity
        self._groups: list[RingBuilder | Group] = []
        self._readings: list[Reading | Derived] = []

    @property
    def features(self) -> list[Feature]:
        """The features added so far."""
        return [reading.feature for reading in self._readings]

    def add_readings(self, attribute: str, readings: Sequence[Reading | Derived]) -> None:
        """Add the features of one attribute.

        Raises:
            DeclarationError: a feature name is taken.
        """
        for reading in readings:
            taken = {feature.name: feature.declared for feature in self.features}
            name = reading.feature.name
            if name in taken:
                raise DeclarationError(
                    f"view {self.view} · feature {attribute}: {name!r} is already a feature of "
                    f"{taken[name]!r}; rename one",
                )
            self._readings.append(reading)

    def ring(self, window: Window) -> tuple[int, RingBuilder]:
        """Group number and cells of a window. Windows that differ only in spelling ("60m", "1h") share a ring."""
        window = unnamed(window)
        for index, group in enumerate(self._groups):
            if isinstance(group, RingBuilder) and group.window == window:
                return index, group
        ring = RingBuilder(window)
        self._groups.append(ring)
        return len(self._groups) - 1, ring

    def group(self, text: str, make: Callable[[], Group]) -> int:
        """Number of the group with this text; `make` builds it if there is none."""
        for index, group in enumerate(self._groups):
            if not isinstance(group, RingBuilder) and group.text == text:
                return index
        self._groups.append(make())
        return len(self._groups) - 1

    def replace_group(self, index: int, change: Callable[[Group], Group]) -> None:
        """Replace a list or tally group by `change(group)`."""
        group = self._groups[index]
        assert not isinstance(group, RingBuilder)
        self._groups[index] = change(group)

    def layout(self, dedupe_us: int = 0) -> Layout:
        """The finished layout; `dedupe_us` is the span in which duplicates are recognised, 0 for none."""
        groups: list[Group] = []
        for builder in self._groups:
            group = builder.group() if isinstance(builder, RingBuilder) else builder
            groups.append(group.linked(groups) if isinstance(group, RingGroup | ListGroup) else group)
        needs_ids = bool(dedupe_us) or any(group.needs_ids for group in groups)
        columns = (len(self.flags.texts), len(self.numbers.texts), len(self.bits.texts))
        text = "\n".join([f"record {RECORD_VERSION}", self._entity, *[group.text for group in groups]])
        if needs_ids and any(spec_of(event).id is None for event in self.sources):
            text += "\nevents known by the columns that are read"  # earlier versions hashed all columns of the frame
        if dedupe_us:
            text += f"\ndedupe {dedupe_us} keep {SEEN_MAX}"
        return Layout(tuple(groups), tuple(self._readings), columns, needs_ids, text, self.request, dedupe_us)


def unnamed(window: Window) -> Window:
    """The window without its label."""
    return Window("", window.window_us, window.hop_us)
