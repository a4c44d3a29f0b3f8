"""VectorMean: the middle of embeddings."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Cell, Source, Value, Windows
from headrace.features.answer import Lists
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.expressions.event_columns import as_expr
from headrace.features.state.layout import Reading
from headrace.features.state.operations import Outputs
from headrace.features.state.rings.cells import ADD

DIM_MAX = 1_024


@declared
@dataclass(frozen=True, slots=True, eq=False)
class VectorMean:
    """Mean of vectors of `dim` numbers, element by element; an empty list where no event has one.

    Vectors that are null, of another length, or with an element that is null or not finite are left out. An entity
    takes 8 * (dim + 1) bytes of memory for each tile of a window, in Redis what it holds.
    """

    value: Value
    _: KW_ONLY
    dim: int
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One list feature a window.

        Raises:
            DeclarationError: `dim` is not from 1 to 1024, or the value is no list of numbers.
        """
        if not 1 <= self.dim <= DIM_MAX:
            raise DeclarationError(f"{binder.path}: dim={self.dim}; write 1 to {DIM_MAX}")
        vector = as_expr(self.value)
        dtype = binder.dtype(vector, self.source)
        inner = getattr(dtype, "inner", None)
        if not isinstance(dtype, pl.List | pl.Array) or inner is None or not inner.is_numeric():
            raise DeclarationError(f"{binder.path}: {vector!s} is {dtype}; VectorMean needs a list of numbers")
        parts = [vector.cast(pl.List(pl.Float64)).list.get(index, null_on_oob=True) for index in range(self.dim)]
        whole = pl.all_horizontal(part.is_finite() for part in parts).fill_null(value=False)
        admitted = whole & (vector.cast(pl.List(pl.Float64)).list.len() == self.dim).fill_null(value=False)
        where = admitted if self.where is None else as_expr(self.where) & admitted
        flag = binder.flag(where, self.source)
        cells = [Cell(ADD), *(Cell(ADD, binder.number(part, self.source)) for part in parts)]
        readings = []
        for window in binder.windows(self.windows, self.hop):
            group, picked = binder.ring(window, cells, flag)
            feature = binder.feature("list[float]", window.label, width=self.dim)
            readings.append(Reading(feature, group, partial(_read, picked)))
        return readings


def _read(picked: NDArray[np.int64], outputs: Outputs, now_us: NDArray[np.int64]) -> Lists:  # noqa: ARG001
    """Cells (n, 1 + dim), the count first, -> lists of dim numbers."""
    cells = outputs[0][:, picked]
    counts = cells[:, :1]
    means = np.divide(cells[:, 1:], counts, out=np.zeros_like(cells[:, 1:]), where=counts > 0)
    return Lists(means, np.where(counts[:, 0] > 0, means.shape[1], 0).astype(np.int64))
