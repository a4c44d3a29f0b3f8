"""Inputs: the arrays that a model reads for a batch of examples, and their packed form for one request.

    ids    (B, F)   int64    one id a field
    bags   (B, L_j) int64    ids of list j, newest first, padded with PAD
    dense  (B, D)   float32  numbers, NaN where missing

Invariant: `Inputs.from_bytes(inputs.to_bytes())` gives the same values, bit for bit. Columns that are equal in all
rows of a request (the entity's features, beside many candidates) are stored once on the wire; a bag that was stored
once is unpacked as a broadcast view. Missing ids are PAD: they have no row in any table and read as zeros.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError, SchemaError

PAD = -(2**63)
ROWS_MAX = 1_000_000  # a packed request that claims more is corrupt

_MAGIC = b"HRI1"
_HEAD = struct.Struct("<4sQIHHH")  # magic, fingerprint, rows, id fields, dense fields, bags
_BAG = struct.Struct("<HHBB")  # width as declared, width stored, 1 when shared by all rows, bytes an id
_WIDTHS = (1, 2, 4, 8)
_SHARED = 0  # column code of an id or dense column that is stored once


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch of examples as arrays; see the module docstring for shapes.

    `fingerprint` (16 hex characters) names the `InputSpec` that assembled it; it travels on the wire.
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
        """The rows of `index`: int64 positions, a bool mask (B,) or a slice."""
        return Inputs(self.ids[index], tuple(bag[index] for bag in self.bags), self.dense[index], self.fingerprint)

    @staticmethod
    def concat(parts: Sequence["Inputs"]) -> "Inputs":
        """All rows of `parts`, in order.

        Raises:
            SchemaError: the parts come from different specs, or there is none.
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
        """The packed form: little-endian, columns that are equal in all rows once, ids in as few bytes as they need."""
        out = [
            _HEAD.pack(
                _MAGIC, int(self.fingerprint, 16), len(self), self.ids.shape[1], self.dense.shape[1], len(self.bags)
            )
        ]
        codes = _id_codes(self.ids)
        bits = np.ascontiguousarray(self.dense).view(np.int32)  # by bits: -0.0 and 0.0 differ
        varies = (bits != bits[:1]).any(axis=0)
        out += [codes.tobytes(), varies.astype(np.uint8).tobytes()]
        out.append(np.ascontiguousarray(self.ids[:1, codes == _SHARED], dtype="<i8").tobytes())
        out += [_narrow(self.ids[:, codes == width], width) for width in _WIDTHS if (codes == width).any()]
        out.append(np.ascontiguousarray(self.dense[:1, ~varies], dtype="<f4").tobytes())
        out.append(np.ascontiguousarray(self.dense[:, varies], dtype="<f4").tobytes())
        for bag in self.bags:
            out += _pack_bag(bag)
        return b"".join(out)

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str | None = None) -> Self:
        """The inputs that `to_bytes` packed.

        Args:
            data: one packed request.
            fingerprint: of the spec that the reader expects; None takes any.

        Raises:
            DecodeError: the bytes are not a packed request, or truncated.
            SchemaError: another spec packed them.
        """
        reader = _Reader(data)
        magic, packed_by, rows, id_count, dense_count, bag_count = reader.struct(_HEAD)
        if magic != _MAGIC or rows > ROWS_MAX:
            raise DecodeError(f"packed inputs: {data[:16]!r}.. is not a packed request of at most {ROWS_MAX} rows")
        if fingerprint is not None and packed_by != int(fingerprint, 16):
            raise SchemaError(
                f"packed inputs of spec {packed_by:016x}, wanted {fingerprint}: features and model must match"
            )
        codes = reader.array(np.uint8, (id_count,))
        varies = reader.array(np.uint8, (dense_count,)).astype(bool)
        ids = np.empty((rows, id_count), dtype=np.int64)
        ids[:, codes == _SHARED] = reader.array("<i8", (min(rows, 1), int((codes == _SHARED).sum())))
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


def _id_codes(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Per column (F,): 0 when all rows are equal, else the bytes an id needs."""
    if len(ids) == 0:
        return np.zeros(ids.shape[1], dtype=np.uint8)
    codes = _bytes_needed(ids)
    codes[(ids == ids[:1]).all(axis=0)] = _SHARED
    return codes


def _bytes_needed(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    real = np.where(ids == PAD, 0, ids)
    low, high = real.min(axis=0, initial=0), real.max(axis=0, initial=0)
    codes = np.full(ids.shape[1], 8, dtype=np.uint8)
    for width in (4, 2, 1):
        half = 1 << (8 * width - 1)
        codes[(low > -half) & (high < half)] = width  # -half itself stands for PAD
    return codes


def _narrow(ids: NDArray[np.int64], width: int) -> bytes:
    return np.where(ids == PAD, -(1 << (8 * width - 1)), ids).astype(f"<i{width}").tobytes()


def _widen(ids: NDArray[Any]) -> NDArray[np.int64]:
    wide = ids.astype(np.int64)
    wide[ids == np.iinfo(ids.dtype).min] = PAD
    return wide


def _pack_bag(bag: NDArray[np.int64]) -> list[bytes]:
    shared = len(bag) > 0 and (bag.strides[0] == 0 or bool((bag == bag[:1]).all()))
    kept = bag[:1] if shared else bag
    used = np.flatnonzero((kept != PAD).any(axis=0))
    kept = kept[:, : used[-1] + 1 if used.size else 0]
    width = int(_bytes_needed(kept).max(initial=1))
    return [_BAG.pack(bag.shape[1], kept.shape[1], shared, width), _narrow(kept, width)]


def _unpack_bag(reader: _Reader, rows: int) -> NDArray[np.int64]:
    declared, stored, shared, width = reader.struct(_BAG)
    if width not in _WIDTHS or stored > declared:
        raise DecodeError(f"packed inputs: a bag of {stored} of {declared} ids of {width} bytes")
    kept = np.full((1 if shared else rows, declared), PAD, dtype=np.int64)
    kept[:, :stored] = _widen(reader.array(f"<i{width}", (len(kept), stored)))
    return np.broadcast_to(kept, (rows, declared)) if shared else kept
