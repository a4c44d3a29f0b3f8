"""Files by what a person types: a path, a glob, the folder of an archive, a URL, or several of these.

Here and on any filesystem that fsspec or pyarrow opens: `s3://bucket/log/*.parquet`, `gs://`, `https://`, `memory://`.
A file's `name` is its path below the glob's fixed part, so that it does not change with the working folder.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSystem

from headrace.errors import SourceError

_MAGIC = frozenset("*?[")
_OFFSETS = "offsets.json"


@dataclass(frozen=True, slots=True, eq=False)
class EventFile:
    """A file to read.

    `url` is what messages call it; `version` changes when its content does; `size` in bytes, -1 where
    the server does not tell.
    """

    url: str
    name: str
    size: int
    version: str
    path: str
    filesystem: Any = None

    @property
    def suffix(self) -> str:
        """What tells its format: ".parquet"."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's disk."""
        return self.filesystem is None

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """The file on this machine's disk: itself, or a copy that is deleted at the end.

        Raises:
            SourceError: it cannot be fetched.
        """
        if self.filesystem is None:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            copy = Path(folder) / f"copy{self.suffix}"
            with _refusals(self.url):
                self.filesystem.get_file(self.path, str(copy))
            yield copy


def is_url(path: str | Path) -> bool:
    """Whether `path` names a place by its protocol."""
    return "://" in str(path) or "::" in str(path)


def find_files(paths: str | Path | Sequence[str | Path], topic: str | None = None) -> list[EventFile]:
    """The files that `paths` name, in the order given, those of a glob sorted.

    A folder is that of an archive, and its files are those of `topic`.

    Raises:
        SourceError: a path or glob finds nothing or a plain folder, or a filesystem cannot be reached.
    """
    found = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if is_url(path):
            found += _remote(str(path), topic)
        else:
            found += _local(str(path), topic)
    return found


def _local(path: str, topic: str | None) -> list[EventFile]:
    plain = Path(path)
    if plain.is_file():
        return [_local_file(plain, plain.name)]
    if topic is not None and (plain / topic / _OFFSETS).is_file():
        fixed, pattern = plain / topic, "*/*.parquet"
    else:
        fixed = Path(*itertools.takewhile(lambda part: not _MAGIC & set(part), plain.parts))
        if fixed == plain:
            raise SourceError(_nothing(path, plain.exists()))
        pattern = str(plain.relative_to(fixed))
    files = sorted(file for file in fixed.glob(pattern) if file.is_file())
    if not files:
        raise SourceError(f"no file matches {path}")
    return [_local_file(file, file.relative_to(fixed).as_posix()) for file in files]


def _local_file(path: Path, name: str) -> EventFile:
    about = path.stat()
    return EventFile(str(path), name, about.st_size, str(about.st_mtime_ns), str(path))


def _remote(url: str, topic: str | None) -> list[EventFile]:
    with _refusals(url):
        filesystem, path = _opened(url)
        if _is_disk(filesystem):
            return _local(path, topic)
        if filesystem.isfile(path):
            return [_remote_file(filesystem, path, PurePosixPath(path).name.partition("?")[0], url)]
        if topic is not None and filesystem.isfile(f"{path.rstrip('/')}/{topic}/{_OFFSETS}"):
            path = f"{path.rstrip('/')}/{topic}/*/*.parquet"
        parts = path.split("/")
        fixed = "/".join(itertools.takewhile(lambda part: not _MAGIC & set(part), parts))
        if fixed == path:
            raise SourceError(_nothing(url, filesystem.exists(path)))
        files = [file for file in sorted(filesystem.glob(path)) if filesystem.isfile(file)]
        if not files:
            raise SourceError(f"no file matches {url}")
        start = len(fixed.strip("/"))
        return [_remote_file(filesystem, file, file.strip("/")[start:].lstrip("/")) for file in files]


def _opened(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, by pyarrow where fsspec lacks a package that pyarrow has built in (S3, GCS, HDFS)."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError:
        arrow, path = FileSystem.from_uri(url)
        filesystem = ArrowFSWrapper(arrow)
    return filesystem, str(path)


def _is_disk(filesystem: Any) -> bool:
    return "file" in ([filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _remote_file(filesystem: Any, path: str, name: str, url: str | None = None) -> EventFile:
    about = filesystem.info(path)
    known = [str(about[key]) for key in ("ETag", "etag", "mtime", "created", "LastModified") if about.get(key)]
    size = -1 if about.get("size") is None else int(about["size"])
    return EventFile(url or filesystem.unstrip_protocol(path), name, size, "".join(known), path, filesystem)


@contextlib.contextmanager
def _refusals(url: str) -> Iterator[None]:
    """Each filesystem raises what its own library does; all of it is one error."""
    try:
        yield
    except SourceError:
        raise
    except Exception as exc:
        raise SourceError(f"{url} cannot be read: {exc or type(exc).__name__}") from exc


def _nothing(path: str, exists: bool) -> str:
    return f"{path} is a folder; add a pattern, as in {path}/*.parquet" if exists else f"file {path} does not exist"
