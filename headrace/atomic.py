"""Atomic writes of files and folders, locks that keep other processes from writing a folder, and changes of a file.

    open_file(path)       <path>.new --write, fsync--> rename to <path> --> fsync of its folder
    open_folder(folder)   .<name>.<random>/ --write, fsync of every file--> rename to <folder> --> fsync of its parent

Invariant: the final name always has complete content, even after a power cut, and its old content stays until the
rename. A crash before it leaves a name that readers ignore; an exception leaves nothing. A file has one writer at a
time.

Source: rename(2) and fsync(2); a rename is durable only once the folder that holds the name is synced.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from headrace.errors import ServiceError

PARTIAL = ".new"
"""Suffix of a file that is being written. The next write replaces a file left by a crash."""


log = structlog.get_logger(__name__)

_claims: dict[tuple[int, int], int] = {}
"""Device and inode of a folder -> the open file that holds its lock."""


def claim(folder: Path) -> bool:
    """Lock `folder` for writing by this process; returns whether the lock is new.

    The folder is created. The lock is on the folder itself and is held until `release` or until the process ends, even
    if it is killed. If the file system does not support locks, the folder is used without one, with a warning.

    Raises:
        ServiceError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _identity(folder) in _claims:
        return False
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(file)
        raise ServiceError(
            f"{folder}: another process writes it; wait for its end or stop it, or name another folder"
        ) from exc
    except OSError as exc:
        os.close(file)
        log.warning("folder_not_locked", folder=str(folder), detail=str(exc), advice="let one process write it")
        return False
    _claims[_identity(folder)] = file
    return True


def release(folder: Path) -> None:
    """Release the lock of a folder, so that another process may write it."""
    os.close(_claims.pop(_identity(folder)))


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def state_of(path: Path) -> Hashable:
    """Return a value that changes when a file is replaced or written; None if there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing; it replaces `path` at the end of the block, or is deleted if the block raises."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace the content of `path` with `data`."""
    with open_file(path) as file:
        file.write(data)


@contextmanager
def open_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder to fill; it becomes `folder` at the end of the block, or is deleted if the block raises.

    Missing parents are created.

    Raises:
        FileExistsError: `folder` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = staging_folder(folder)
    try:
        yield partial
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def staging_folder(folder: Path) -> Path:
    """Create an empty folder beside `folder`, to be filled and passed to `publish_folder`, or deleted."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()
    return partial


def publish_folder(partial: Path, folder: Path) -> None:
    """Sync every file in `partial` to disk, then rename it to `folder` in the same parent.

    Raises:
        FileExistsError: `folder` exists and is not empty.
    """
    for below, _, names in os.walk(partial):
        for name in names:
            sync(Path(below) / name)
        sync(Path(below))
    try:
        partial.rename(folder)
    except OSError as exc:
        if folder.exists():
            raise FileExistsError(f"{folder} exists; another writer uses its parent") from exc
        raise
    sync(folder.parent)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
