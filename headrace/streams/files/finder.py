"""Finding files by a path, a glob, the folder of an archive, a URL, or several of these.

Files are local or on any filesystem that fsspec or pyarrow opens: `s3://bucket/log/*.parquet`, `gs://`, `https://`,
`memory://`. A file's `name` is its path below the fixed part of the glob, so that it does not depend on the working
folder. Only files of an archive that its committed offsets cover are found, and patterns skip empty files. A file that
several paths, patterns or symbolic links reach is found once, under the name from the first of them.
"""

import contextlib
import io
import itertools
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
import structlog
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSystem

from headrace.errors import SourceError
from headrace.redaction import has_secrets, redacted, shown_url
from headrace.streams.files.archive_names import OFFSETS, is_committed, parse_offsets, refuse_overlaps
from headrace.streams.files.text_times import TimeFormat

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffix of a compressed text file, after the suffix of its format -> pyarrow's name of the compression."""

_MAGIC = frozenset("*?[")
_ENDS_BYTES = 65_536

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class EventFile:
    """A file to read.

    Attributes:
        url: its name in messages, without secrets.
        name: path below the glob's fixed part, symbolic links resolved.
        size: size in bytes, -1 if the server does not tell.
        version: changes with the content; "" if the server does not tell.
        path: path for opening it, local or within `filesystem`.
        location: resolved location, equal for two `EventFile`s of the same file, however they were found.
        is_archived: written by the archiver, and never changed.
        csv_time_format: strptime format of times in a CSV that are not ISO 8601.
    """

    url: str
    name: str
    size: int
    version: str
    path: str
    location: str
    filesystem: Any = None
    is_archived: bool = False
    csv_time_format: str | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the format; see `format_suffix`."""
        return format_suffix(self.name)

    @property
    def compression(self) -> str | None:
        """Compression of the file by its suffix, as pyarrow names it; None if it is not compressed."""
        return COMPRESSIONS.get(PurePosixPath(self.name).suffix.lower())

    @property
    def is_local(self) -> bool:
        """Whether the file is on a local disk."""
        return self.filesystem is None

    def fingerprint(self) -> str:
        """Hex digits that change with the content: 8 from the size and both ends, then 8 from all bytes.

        A Parquet file has only the first 8, since its footer at the end changes with every value. A remote file has 8
        from its size and version, if the server tells a version.

        Raises:
            SourceError: the file cannot be read.
        """
        if self.version and not self.is_local:
            return f"{zlib.crc32(f'{self.size} {self.version}'.encode()):08x}"
        is_parquet = self.suffix == ".parquet" and self.is_local
        with self._raw() as file, _refusals(self.url, self.path):
            head = last = file.read(_ENDS_BYTES)
            whole, size = zlib.crc32(head), len(head)
            if is_parquet:
                file.seek(max(self.size - _ENDS_BYTES, 0))
                last, size = file.read(_ENDS_BYTES), self.size
            else:
                while block := file.read(1 << 20):
                    whole, last, size = zlib.crc32(block, whole), (last + block)[-_ENDS_BYTES:], size + len(block)
        ends = f"{zlib.crc32(b'%d ' % size + head + last):08x}"
        return ends if is_parquet else f"{ends}{whole:08x}"

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the decompressed content; of a remote file, little more is fetched than is read.

        Raises:
            SourceError: the file cannot be opened.
        """
        with self._raw() as file:
            if self.compression is None:
                yield file
            else:
                yield io.BufferedReader(pa.input_stream(file, compression=self.compression))

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """The path of the decompressed file on a local disk: the file itself, or a copy that is deleted at the end.

        Raises:
            SourceError: the file cannot be fetched or decompressed.
        """
        if self.is_local and self.compression is None:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            copy = Path(folder) / f"copy{self.suffix}"
            with _refusals(self.url, self.path):
                if self.compression is None:
                    self.filesystem.get_file(self.path, str(copy))
                else:
                    with self.opened() as stream, copy.open("wb") as file:
                        shutil.copyfileobj(stream, file)
            yield copy

    @contextlib.contextmanager
    def _raw(self) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as stack:
            with _refusals(self.url, self.path):
                if self.is_local:
                    file = stack.enter_context(Path(self.path).open("rb"))
                else:
                    file = stack.enter_context(self.filesystem.open(self.path, "rb"))
            yield file


def format_suffix(name: str) -> str:
    """Suffix of a file's format, without the suffix of a compression: ".jsonl" for "log.jsonl.gz"."""
    path = PurePosixPath(name)
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL with a protocol."""
    return "://" in str(path) or "::" in str(path)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Files, and the ends of the archives among the paths: the next offset of each partition, {} without an archive."""

    files: list[EventFile]
    ends: dict[str, int]


def find_files(
    paths: str | Path | Sequence[str | Path], topic: str | None = None, *, csv_time_format: str | None = None
) -> Found:
    """The files that `paths` name, each once, in the order given, those of a glob sorted; and where archives end.

    A folder is that of an archive, and its files are those of `topic`. Files and ends are of one moment, whatever an
    archiver does meanwhile. `csv_time_format` is kept with each file.

    Raises:
        SourceError: a path or glob matches nothing or a plain folder, or a filesystem cannot be reached.
        SchemaError: `csv_time_format` is no format of whole times.
    """
    if csv_time_format is not None:
        TimeFormat(csv_time_format)
    files: dict[str, EventFile] = {}
    ends: dict[str, int] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        matches = _remote(str(path), topic) if is_url(path) else _local_of(str(path), topic)
        ends.update(matches.ends)
        for file in matches.files:
            known = files.setdefault(file.location, replace(file, csv_time_format=csv_time_format))
            if known.url != file.url:
                log.info("file_reached_twice", file=file.url, read_as=known.url)
    return Found(list(files.values()), ends)


def _local_of(path: str, topic: str | None) -> Found:
    try:
        return _local(path, topic)
    except OSError as exc:  # a name that is too long, a folder that must not be read
        raise SourceError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _local(path: str, topic: str | None) -> Found:
    plain = Path(path)
    if plain.is_file():
        return Found([_local_file(plain, Path(os.path.realpath(plain)).name)], {})
    if topic is not None and (plain / topic / OFFSETS).is_file():
        ends = parse_offsets((plain / topic / OFFSETS).read_bytes(), path)  # read first: every file they cover exists
        files = sorted((plain / topic).glob("*/*.parquet"))
        kept = [file for file in files if is_committed(file.as_posix(), topic, ends)]
        names = [file.relative_to(plain / topic).as_posix() for file in kept]
        refuse_overlaps(names, topic, path)
        return Found([_local_file(*one, is_archived=True) for one in zip(kept, names, strict=True)], ends)
    if not path:
        raise SourceError("'' names no file; write a path, a glob such as log/*.parquet, or the folder of an archive")
    fixed = Path(*itertools.takewhile(lambda part: not _MAGIC & set(part), plain.parts))
    if fixed == plain:
        raise SourceError(_nothing(shown_url(path), plain.exists(), is_folder=plain.is_dir()))
    files = sorted(file for file in fixed.glob(str(plain.relative_to(fixed))) if file.is_file())
    return Found(_not_empty([_local_file(file, _name_below(file, fixed)) for file in files], shown_url(path)), {})


def _name_below(file: Path, fixed: Path) -> str:
    """Path of a file below a folder, symbolic links resolved; the whole path if a link leads out of the folder."""
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(fixed))
    return real.relative_to(root if real.is_relative_to(root) else real.anchor).as_posix()


def _local_file(path: Path, name: str, *, is_archived: bool = False) -> EventFile:
    about = path.stat()
    real = os.path.realpath(path)
    url, name = _in_utf8(str(path)), _in_utf8(name)
    return EventFile(url, name, about.st_size, str(about.st_mtime_ns), str(path), real, is_archived=is_archived)


def _in_utf8(name: str) -> str:
    """Escape bytes of a name that are not UTF-8, since messages and stores cannot hold their surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def _remote(url: str, topic: str | None) -> Found:
    shown = shown_url(url)
    with _refusals(shown, url):
        filesystem, path = _opened(url)
        if _is_disk(filesystem):
            return _local(path, topic)
        if filesystem.isfile(path):
            return Found([_remote_file(filesystem, path, PurePosixPath(path).name.partition("?")[0], url)], {})
        fixed = f"{path.rstrip('/')}/{topic}"
        if topic is not None and filesystem.isfile(f"{fixed}/{OFFSETS}"):
            ends = parse_offsets(filesystem.cat_file(f"{fixed}/{OFFSETS}"), shown)
            kept = [file for file in sorted(filesystem.glob(f"{fixed}/*/*.parquet")) if is_committed(file, topic, ends)]
            refuse_overlaps(kept, topic, shown)
            return Found([_below(filesystem, file, fixed, is_archived=True) for file in kept], ends)
        fixed = "/".join(itertools.takewhile(lambda part: not _MAGIC & set(part), path.split("/")))
        if fixed == path:
            raise SourceError(_nothing(shown, _is_there(filesystem, path)))
        files = [file for file in sorted(filesystem.glob(path)) if filesystem.isfile(file)]
        return Found(_not_empty([_below(filesystem, file, fixed) for file in files], shown), {})


def _not_empty(files: list[EventFile], path: str) -> list[EventFile]:
    """The files that a pattern matches, without empty ones, which a writer has only begun."""
    if not files:
        raise SourceError(f"no file matches {path}")
    for file in files:
        if file.size == 0:
            log.warning("empty_file_left_out", file=file.url)
    return [file for file in files if file.size]


def _is_there(filesystem: Any, path: str) -> bool:
    """Whether the path exists.

    Raises:
        OSError: the server is unreachable or refuses access, which fsspec's HTTP filesystem reports as a missing file.
    """
    try:
        filesystem.info(path)
    except FileNotFoundError as exc:
        cause = exc.__cause__
        unreachable = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        if unreachable or getattr(cause, "status", HTTPStatus.NOT_FOUND) != HTTPStatus.NOT_FOUND:
            raise OSError(str(cause)) from exc
        return False
    return True


def _opened(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, from pyarrow if fsspec needs a package for what pyarrow has built in (S3, GCS, HDFS)."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError:
        arrow, path = FileSystem.from_uri(url)
        filesystem = ArrowFSWrapper(arrow)
    return filesystem, str(path)


def _is_disk(filesystem: Any) -> bool:
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _below(filesystem: Any, path: str, fixed: str, *, is_archived: bool = False) -> EventFile:
    """The file at `path`, named by its path below `fixed`."""
    name = path.strip("/")[len(fixed.strip("/")) :].lstrip("/")
    return _remote_file(filesystem, path, name, is_archived=is_archived)


def _remote_file(
    filesystem: Any, path: str, name: str, url: str | None = None, *, is_archived: bool = False
) -> EventFile:
    about = filesystem.info(path)
    known = [str(about[key]) for key in ("ETag", "etag", "mtime", "created", "LastModified") if about.get(key)][:1]
    size = -1 if about.get("size") is None else int(about["size"])
    full = str(filesystem.unstrip_protocol(path))
    location = f"{hash(filesystem):x}:{full}"  # the path does not identify the server
    return EventFile(shown_url(url or full), name, size, "".join(known), path, location, filesystem, is_archived)


@contextlib.contextmanager
def _refusals(shown: str, url: str) -> Iterator[None]:
    """Map the errors of all filesystem libraries to one error, without the secrets of `url`."""
    try:
        yield
    except SourceError:
        raise
    except Exception as exc:  # noqa: BLE001 - filesystem libraries raise their own errors
        reason = redacted(str(exc), url) or type(exc).__name__
        raise SourceError(f"{shown} cannot be read: {reason}") from (None if has_secrets(url) else exc)


def _nothing(path: str, exists: bool, *, is_folder: bool = True) -> str:
    if not exists:
        return f"file {path} does not exist"
    if not is_folder:
        return f"{path} is a pipe or device; write what it gives to a file first"
    return (
        f"{path} is a folder; add a pattern, as in {path if path.endswith('://') else path.rstrip('/') + '/'}*.parquet"
    )
