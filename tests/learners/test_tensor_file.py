"""The file of a snapshot's tensors: read as the safetensors library reads it, and damaged ones named."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load, save

from headrace.errors import SnapshotError
from headrace.learners.publishing.tensor_file import PIECE_BYTES, read_verified, tensors_of

ARRAYS = {
    "flags": np.array([True, False, True]),
    "odd": np.arange(3, dtype=np.uint8),
    "ids": np.arange(PIECE_BYTES // 8 + 5, dtype=np.int64),  # more than one piece
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
    "empty": np.empty((0, 5), np.float32),
    "one": np.array(2.5),
}


def written(tmp_path, data):
    path = tmp_path / "v1" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(data)
    return path, len(data), hashlib.sha256(data).hexdigest()


def test_tensors_are_those_of_the_library(tmp_path):
    """Names, types, shapes and values; aligned and writable, as kernels want them."""
    data = save(ARRAYS)
    tensors, expected = tensors_of(read_verified(*written(tmp_path, data)), "here"), load(data)
    assert set(tensors) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype
        assert tensors[name].flags.aligned
        assert tensors[name].flags.writeable


def test_a_file_of_another_size_or_digest_is_refused(tmp_path):
    """With the folder, the file, and what differs."""
    path, size, digest = written(tmp_path, save(ARRAYS))
    with pytest.raises(SnapshotError, match=rf"v1 · model.safetensors: {size} bytes, manifest says {size + 1}"):
        read_verified(path, size + 1, digest)
    with pytest.raises(SnapshotError, match="checksum differs"):
        read_verified(path, size, digest[::-1])
    path.unlink()
    with pytest.raises(SnapshotError, match="missing"):
        read_verified(path, size, digest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 20,
        b"\x02" + bytes(7) + b"[]",
        b"\x0e" + bytes(7) + b'{"a":{"b":[]}}',
        save({"a": np.arange(4.0)})[:-8],
        save({"a": np.arange(4.0)}).replace(b"F64", b"X64"),
        save({"a": np.arange(4.0)}).replace(b"[4]", b"[5]"),
    ],
)
def test_bytes_that_are_no_such_file_are_one_typed_error(data):
    with pytest.raises(SnapshotError, match="here: not a safetensors file"):
        tensors_of(np.frombuffer(bytearray(data), np.uint8), "here")
