"""Conversion of integers, whole floats and texts to int64 ids, exactly or with an error. A missing id is PAD."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SchemaError
from headrace.features import hash_text
from headrace.learners.inputs import PAD

_INT64_MAX = 2**63 - 1


def as_ids(values: NDArray[Any]) -> NDArray[np.int64]:
    """Convert values (n,) to ids, int64, with PAD where missing.

    Integers and booleans keep their value, whole floats too (NaN is missing), and texts become their xxh64 as int64. An
    object array may hold integers or texts, and None where missing.

    Raises:
        SchemaError: a value has no exact id: a fraction, an integer beyond 64 bits, an infinite number, another type,
            or a float beyond 2**53, which may stand for several integers. Give a column of integers with nulls as an
            object array, or fill it with PAD.
    """
    kind = values.dtype.kind
    if kind in "iub":
        if kind == "u" and values.dtype.itemsize == 8 and values.size and int(values.max()) > _INT64_MAX:
            raise SchemaError(
                f"id {int(values.max())}: beyond 64 signed bits; give ids of -2**63 to 2**63 - 1, or text"
            )
        return values.astype(np.int64, copy=False)
    if kind == "f":
        return _ids_of_floats(values)
    if kind == "U":
        return np.asarray(hash_text(pl.Series(values.reshape(-1).tolist(), dtype=pl.String))).reshape(values.shape)
    if kind == "O":
        return _ids_of_objects(values)
    raise SchemaError(f"ids of type {values.dtype}: give integers or text")


def _ids_of_floats(values: NDArray[Any]) -> NDArray[np.int64]:
    missing = np.isnan(values)
    present = np.where(missing, 0.0, values)
    digits = min(np.finfo(values.dtype).nmant + 1, 53)  # a float32 stands for several integers beyond 2**24
    wrong = (np.abs(present) > 2**digits) | (present != np.trunc(present))
    if wrong.any():
        raise SchemaError(
            f"id {float(present[wrong][0])!r}: not a whole number of at most 2**{digits}, beyond which a "
            f"{values.dtype} stands for several integers; give integers, or text"
        )
    ids = present.astype(np.int64)
    ids[missing] = PAD
    return ids


def _ids_of_objects(values: NDArray[Any]) -> NDArray[np.int64]:
    items = values.reshape(-1).tolist()
    kinds = {type(item) for item in items if item is not None}
    if kinds <= {str}:
        texts = pl.Series(items, dtype=pl.String)
        ids = np.where(texts.is_null().to_numpy(), PAD, hash_text(texts))
    elif kinds <= {int, bool}:
        try:
            ids = np.array([PAD if item is None else int(item) for item in items], dtype=np.int64)
        except OverflowError as exc:
            raise SchemaError("an id is beyond 64 signed bits; give ids of -2**63 to 2**63 - 1, or text") from exc
    else:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise SchemaError(f"ids of type {names}: give integers or text, of one kind")
    return ids.reshape(values.shape)
