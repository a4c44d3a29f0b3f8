"""Reading and verifying the tensors of a safetensors file without holding the GIL.

    u64 length of the header | header: JSON, name -> dtype, shape, [begin, end) in the data | data

The library copies each tensor while it holds the GIL: 70 ms for 140 MB, during which no request is answered. Here the
file is read into one buffer in pieces, each of which is hashed, both without the GIL. The arrays are views of it.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.errors import SnapshotError

PIECE_BYTES = 8 << 20
"""Bytes read and hashed at a time, few enough that the hash finds them in the processor's cache."""

_HEAD_BYTES = 8
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


def read_verified(path: Path, size_bytes: int, sha256: str) -> NDArray[np.uint8]:
    """Read a file and verify its size and digest.

    Raises:
        SnapshotError: the file is missing, or differs in size or digest.
    """
    where = _where(path)
    digest = hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        if size != size_bytes:
            raise SnapshotError(f"{where}: {size} bytes, manifest says {size_bytes}")
        data = np.empty(size, np.uint8)
        done = 0
        while done < size:
            count = file.readinto(data[done : done + PIECE_BYTES].data)
            if not count:
                raise SnapshotError(f"{where}: {done} bytes, manifest says {size_bytes}")
            digest.update(data[done : done + count].data)
            done += count
    if digest.hexdigest() != sha256:
        raise SnapshotError(f"{where}: checksum differs from the manifest's")
    return data


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which a file of a snapshot is opened and read. Only regular files: opening a pipe could block forever.

    Raises:
        SnapshotError: the file is missing or not a regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SnapshotError(f"{_where(path)}: is no file")
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SnapshotError(f"{_where(path)}: missing") from exc


def tensors_of(data: NDArray[np.uint8], where: str) -> dict[str, NDArray[Any]]:
    """The tensors by name, as views of `data` if aligned, otherwise copies; `where` names the file in errors.

    Raises:
        SnapshotError: the bytes are not a safetensors file.
    """
    try:
        begin = _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES].tobytes(), "little")
        header = orjson.loads(data[_HEAD_BYTES:begin].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(data[begin:], **entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise SnapshotError(f"{where}: not a safetensors file: {exc}") from exc


def _where(path: Path) -> str:
    return f"snapshot {path.parent.name} · {path.name}"


def _tensor(data: NDArray[np.uint8], dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[Any]:
    first, last = data_offsets
    if not 0 <= first <= last <= len(data):
        raise ValueError(f"a tensor at bytes {first} to {last} of {len(data)}")
    array: NDArray[Any] = data[first:last].view(_DTYPES[dtype]).reshape(shape)
    return array if array.flags.aligned else array.copy()
