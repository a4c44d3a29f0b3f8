"""Local Arrow IPC files, in the file format or the stream format, whole and in pieces.

Polars reads files whose column types it knows; pyarrow reads streams, and files with other column types.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from headrace.errors import DecodeError
from headrace.schemas.tables import is_plain, to_polars
from headrace.streams.files.wanted import Wanted

_FILE_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + b"\0\0\0\0"


def read_arrow(path: Path, wanted: Wanted) -> pl.DataFrame:
    """Read all rows."""
    if _is_plain_file(path):
        return pl.read_ipc(path, columns=wanted.among(pl.scan_ipc(path, glob=False).collect_schema().names()))
    return pl.concat(_batches(path, wanted))


def iter_arrow(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """Like `read_arrow`, in pieces of about `rows` rows, or in the batches of the file."""
    if not _is_plain_file(path):
        yield from _batches(path, wanted)
        return
    scan = pl.scan_ipc(path, glob=False)
    names = wanted.among(scan.collect_schema().names())
    yield from (scan if names is None else scan.select(names)).collect_batches(chunk_size=rows, maintain_order=True)


def _batches(path: Path, wanted: Wanted) -> Iterator[pl.DataFrame]:
    """Yield a frame without rows, then one per batch."""
    is_file = _is_file(path)
    with pa.OSFile(str(path)) as opened, (pa.ipc.open_file if is_file else pa.ipc.open_stream)(opened) as reader:
        names = wanted.among(reader.schema.names) or reader.schema.names
        places = [place for place, name in enumerate(reader.schema.names) if name in names]
        yield to_polars(pa.Table.from_batches([], reader.schema).select(places), wanted.asked)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield to_polars(pa.Table.from_batches([batch]).select(places), wanted.asked)
        if not is_file:
            _check_end(opened)


def _check_end(opened: pa.OSFile) -> None:
    """Check that the stream ends with its end mark at the end of the file; readers also accept a missing mark.

    Raises:
        DecodeError: the file is truncated, or has data after the stream.
    """
    end, size = opened.tell(), opened.size()
    if end < size:
        raise DecodeError(
            f"{size - end:,} bytes follow the end of its Arrow stream, at byte {end:,}; write all rows into one "
            "stream, or each stream into a file"
        )
    opened.seek(0)
    has_marks = opened.read(len(_CONTINUATION)) == _CONTINUATION  # not before format version 0.15
    opened.seek(max(size - len(_END), 0))
    if has_marks and opened.read() != _END:
        raise DecodeError("its Arrow stream has no end: it was cut off, or its writer is not done; close the writer")


def _is_plain_file(path: Path) -> bool:
    if not _is_file(path):
        return False
    with pa.OSFile(str(path)) as opened, pa.ipc.open_file(opened) as reader:
        return is_plain(reader.schema)


def _is_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
