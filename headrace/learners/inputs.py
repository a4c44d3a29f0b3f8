"""Inputs: the arrays that a model reads for a batch of examples, and their packed form for one request.

    ids    (B, F)   int64    one id per field
    bags   (B, L_j) int64    ids of list j, newest first, padded with PAD
    dense  (B, D)   float32  numbers, NaN where missing

Invariant: `Inputs.from_bytes(inputs.to_bytes())` gives the same values, bit for bit. Columns that are equal in all
rows of a request, such as the entity's features beside many candidates, are stored once on the wire. A bag that was
stored once is unpacked as a broadcast view. Missing ids are PAD: they have no row in any table and read as zeros.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError, SchemaError
from headrace.learners.packed_form import BAG_HEAD, HEAD, MAGIC, MISSING_ID, SHARED, pack_requests

PAD = MISSING_ID
ROWS_MAX = 1_000_000  # a packed request that declares more rows is corrupt

_WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch of examples as arrays; see the module docstring for shapes.

    `fingerprint` (16 hex characters) identifies the `InputSpec` that assembled the batch; the packed form includes it.
    """

    ids: NDArray[np.int64]
    bags: tuple[NDArray[np.int64], ...]
    dense: NDArray[np.float32]
    fingerprint: str = "0" * 16

    def __post_init__(self) -> None:
        assert self.ids.ndim == 2
        assert self.dense.ndim == 2
        assert len(self.dense) == len(self.ids)
        assert all(len(bag) == len(self.ids) for bag in self.bags)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[Any] | slice) -> "Inputs":
        """Select the rows of `index`: int64 positions, a bool mask (B,) or a slice."""
        return Inputs(self.ids[index], tuple(bag[index] for bag in self.bags), self.dense[index], self.fingerprint)

    @staticmethod
    def concat(parts: Sequence["Inputs"]) -> "Inputs":
        """Concatenate the rows of `parts`, in order.

        Raises:
            SchemaError: the parts come from different specs, or `parts` is empty.
        """
        if len({part.fingerprint for part in parts}) != 1:
            raise SchemaError(
                f"concat of inputs of specs {sorted({part.fingerprint for part in parts})}: one is allowed"
            )
        if len(parts) == 1:
            return parts[0]
        return Inputs(
            np.concatenate([part.ids for part in parts]),
            tuple(np.concatenate(bags) for bags in zip(*(part.bags for part in parts), strict=True)),
            np.concatenate([part.dense for part in parts]),
            parts[0].fingerprint,
        )

    def to_bytes(self) -> bytes:
        """Pack all rows, little-endian: columns equal in all rows are stored once, ids in as few bytes as needed."""
        return self.pack_each(np.arange(len(self)), np.array([0, len(self)]))[0]

    def pack_each(self, picked: NDArray[np.int64], edges: NDArray[np.int64]) -> list[bytes]:
        """Pack n requests: request i has the rows `picked[edges[i]:edges[i + 1]]`, in this order."""
        return list(pack_requests(self.ids, self.dense, self.bags, self.fingerprint, picked, edges))

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str | None = None) -> Self:
        """Unpack what `to_bytes` packed.

        Args:
            data: one packed request.
            fingerprint: of the spec that the reader expects; None accepts any.

        Raises:
            DecodeError: the bytes are not a packed request, or are truncated.
            SchemaError: the inputs were packed with another spec.
        """
        reader = _Reader(data)
        magic, packed_by, rows, id_count, dense_count, bag_count = reader.struct(HEAD)
        if magic != MAGIC or rows > ROWS_MAX:
            raise DecodeError(f"packed inputs: {data[:16]!r}.. is not a packed request of at most {ROWS_MAX} rows")
        if fingerprint is not None and packed_by != int(fingerprint, 16):
            raise SchemaError(
                f"packed inputs of spec {packed_by:016x}, wanted {fingerprint}: features and model must match"
            )
        codes = reader.array(np.uint8, (id_count,))
        varies = reader.array(np.uint8, (dense_count,)).astype(bool)
        ids = np.empty((rows, id_count), dtype=np.int64)
        ids[:, codes == SHARED] = reader.array("<i8", (min(rows, 1), int((codes == SHARED).sum())))
        for width in _WIDTHS:
            if (codes == width).any():
                ids[:, codes == width] = _widen(reader.array(f"<i{width}", (rows, int((codes == width).sum()))))
        dense = np.empty((rows, dense_count), dtype=np.float32)
        dense[:, ~varies] = reader.array("<f4", (min(rows, 1), int((~varies).sum())))
        dense[:, varies] = reader.array("<f4", (rows, int(varies.sum())))
        bags = tuple(_unpack_bag(reader, rows) for _ in range(bag_count))
        reader.end()
        return cls(ids, bags, dense, f"{packed_by:016x}")


class _Reader:
    """A cursor over packed bytes that never reads past their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def _advance(self, size: int) -> int:
        start = self._offset
        self._offset += size
        if self._offset > len(self._data):
            raise DecodeError(f"packed inputs: truncated at byte {len(self._data)}, {self._offset} wanted")
        return start

    def struct(self, form: struct.Struct) -> tuple[Any, ...]:
        start = self._advance(form.size)
        return form.unpack_from(self._data, start)

    def array(self, dtype: Any, shape: tuple[int, int] | tuple[int]) -> NDArray[Any]:
        count = int(np.prod(shape))
        start = self._advance(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self._data, dtype, count, start).reshape(shape)

    def end(self) -> None:
        if self._offset != len(self._data):
            raise DecodeError(f"packed inputs: {len(self._data) - self._offset} bytes too many")


def _widen(ids: NDArray[Any]) -> NDArray[np.int64]:
    wide = ids.astype(np.int64)
    wide[ids == np.iinfo(ids.dtype).min] = PAD
    return wide


def _unpack_bag(reader: _Reader, rows: int) -> NDArray[np.int64]:
    declared, stored, shared, width = reader.struct(BAG_HEAD)
    if width not in _WIDTHS or stored > declared:
        raise DecodeError(f"packed inputs: a bag of {stored} of {declared} ids of {width} bytes")
    kept = np.full((1 if shared else rows, declared), PAD, dtype=np.int64)
    kept[:, :stored] = _widen(reader.array(f"<i{width}", (len(kept), stored)))
    return np.broadcast_to(kept, (rows, declared)) if shared else kept
