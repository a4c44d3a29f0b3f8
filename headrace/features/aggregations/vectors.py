"""VectorMean: the mean of embeddings."""

from dataclasses import KW_ONLY

import numpy as np
import polars as pl

from headrace.errors import DeclarationError
from headrace.features.aggregations.aggregation import Cell, Cells, Output, Ring, Types, Windowed, aggregation
from headrace.features.answer import Lists
from headrace.features.argument_types import Value
from headrace.features.expressions.event_columns import as_expr
from headrace.features.state.rings.cells import ADD

DIM_MAX = 1_024


@aggregation
class VectorMean(Windowed):
    """Element-wise mean of vectors of `dim` numbers; an empty list if no event has a vector.

    Vectors that are null, have another length, or have an element that is null or not finite are ignored. An entity
    takes 8 * (dim + 1) bytes of memory for each tile of a window.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(centre=VectorMean("position", dim=2, windows="1h"))
    {'centre_1h': [1.3333333333333333, 2.0]}
    """

    value: Value
    _: KW_ONLY
    dim: int

    def problem(self) -> str | None:
        """Report a `dim` outside of 1 to 1024."""
        return None if 1 <= self.dim <= DIM_MAX else f"dim={self.dim}; write 1 to {DIM_MAX}"

    def state(self, types: Types) -> Ring:
        """The count of complete vectors and the sum of each element.

        Raises:
            DeclarationError: the value is not a list of numbers.
        """
        vector, dtype = as_expr(self.value), types.dtype(self.value)
        inner = getattr(dtype, "inner", None)
        if not isinstance(dtype, pl.List | pl.Array) or inner is None or not inner.is_numeric():
            raise DeclarationError(f"{types.path}: {vector!s} is {dtype}; VectorMean needs a list of numbers")
        floats = vector.cast(pl.List(pl.Float64))
        elements = [floats.list.get(index, null_on_oob=True) for index in range(self.dim)]
        finite = pl.all_horizontal(element.is_finite() for element in elements).fill_null(value=False)
        whole = finite & (floats.list.len() == self.dim).fill_null(value=False)
        return Ring(
            [Cell(ADD), *(Cell(ADD, element) for element in elements)],
            (Output("list[float]", _read, width=self.dim),),
            where=whole if self.where is None else as_expr(self.where) & whole,
        )


def _read(cells: Cells) -> Lists:
    """Sums divided by the count, as lists of dim numbers."""
    counts, sums = cells.values[:, :1], cells.values[:, 1:]
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return Lists(means, np.where(counts[:, 0] > 0, means.shape[1], 0).astype(np.int64))
